"""The ServerApp: Flower's grid on one side, the coordinator's `Transport` on the other."""

from __future__ import annotations

import functools
import itertools
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from server.device import check_devices
from server.events import Notice, Observer
from server.manifest import Engine
from server.plain import print_event
from server.run import learn, open_run
from server.run_folder import new_run_folder
from server.stage import Transport
from shared_models.config import BUILTIN, parse_config
from shared_models.errors import RoundError, UpdateError, one_line
from shared_models.messages import BlockFailure, BlockRequest, Hello, Reply, Send
from shared_models.wire import (
    EVALUATE_BLOCK,
    HELLO,
    TRAIN_BLOCK,
    decode_hello,
    decode_partial,
    encode_broadcast,
    encode_request,
)

_NODES_TIMEOUT_S = 60.0
_TIMED_OUT = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE}


def make_app(observe: Observer = print_event) -> ServerApp:
    """Returns a ServerApp that runs the learning stages and tells `observe` about it."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.set_num_threads(1)  # as in the workers: one engine may not sum in another order
        settings = context.run_config
        config = parse_config(str(settings.get("config") or BUILTIN), "run config")
        check_devices(config)
        # Where nobody measured, nodes settle the plan in the same way; the folder has to say how.
        config = config.model_copy(update={"plan": config.settled_plan})
        given = settings.get("out")
        out = Path(str(given)) if given else new_run_folder(Path("runs"), config.name)
        folder = open_run(config, out, resume=bool(settings.get("resume")))
        if not given:
            observe(Notice(f"run folder {out.absolute()}"))
        learn(config, folder, make_transport(grid, config.client_deadline_s), observe)

    return server_app


def make_transport(grid: Grid, client_deadline_s: float | None = None) -> Transport:
    """Returns the coordinator's view of a grid; a deadline holds where the grid can cut off."""
    patience = client_deadline_s if getattr(grid, "cuts_off", False) else None
    nodes = _wait_for_nodes(grid)

    def hello() -> Mapping[int, Hello]:
        questions = [Message(RecordDict(), node, HELLO) for node in nodes]
        answers = grid.send_and_receive(questions)
        hellos = {answer.metadata.src_node_id: _hello(answer) for answer in answers}
        if silent := sorted(set(nodes) - set(hellos)):
            raise RoundError(f"nodes {silent} did not answer; restart or remove them")
        return hellos

    def send(kind: str, requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        # Requests are taken when the grid takes their messages: each may hold much.
        sent: list[str] = []
        messages = _messages(kind, requests, nodes, patience)
        return _in_order(sent, grid.send_and_receive(_noted(messages, sent)))

    train: Send = functools.partial(send, TRAIN_BLOCK)
    evaluate: Send = functools.partial(send, EVALUATE_BLOCK)
    engine = Engine(getattr(grid, "engine", "flower"), getattr(grid, "workers", None))
    return Transport(hello, train, evaluate, engine)


def _wait_for_nodes(grid: Grid) -> tuple[int, ...]:
    deadline = time.monotonic() + _NODES_TIMEOUT_S
    while not (nodes := tuple(grid.get_node_ids())):
        if time.monotonic() > deadline:
            raise RoundError(f"no node connected within {_NODES_TIMEOUT_S:.0f} s; start clients")
        time.sleep(0.5)
    return nodes


def _hello(answer: Message) -> Hello:
    if answer.has_error():
        raise RoundError(f"node {answer.metadata.src_node_id} did not answer: {_reason(answer)}")
    try:
        return decode_hello(answer.content)
    except UpdateError as error:
        raise RoundError(f"node {answer.metadata.src_node_id}: {error}") from None


def _messages(
    kind: str, requests: Iterable[BlockRequest], nodes: tuple[int, ...], patience: float | None
) -> Iterator[Message]:
    """Yields one message per request; a block that any node may train goes round the nodes.

    A message lives for `patience` seconds a client.
    """
    params, broadcast = None, {}
    for place, request in enumerate(requests):
        if params is not request.params:
            params, broadcast = request.params, encode_broadcast(request)
        node = nodes[place % len(nodes)] if request.node is None else request.node
        content = encode_request(request, broadcast)
        ttl = None if patience is None else patience * len(request.client_ids)
        # Unguessable: a node is told its own messages' only, so that none answers for another.
        yield Message(content, node, kind, group_id=secrets.token_hex(16), ttl=ttl)


def _noted(messages: Iterable[Message], sent: list[str]) -> Iterator[Message]:
    for message in messages:
        sent.append(message.metadata.group_id)
        yield message


def _in_order(sent: Sequence[str], answers: Iterable[Message]) -> Iterator[Reply]:
    """Yields a reply per message sent, in their order, holding back those that come early.

    Flower copies a message's group id into its reply, errors included. `sent` are the group ids of
    the messages that were taken so far.
    """
    early: dict[str, Message] = {}
    waiting = iter(answers)
    for place in itertools.count():
        while early.keys().isdisjoint(sent[place : place + 1]):
            if (answer := next(waiting, None)) is None:
                break
            early.setdefault(answer.metadata.group_id, answer)
        if place >= len(sent):
            return
        answer = early.pop(sent[place], None)
        yield BlockFailure("no reply came") if answer is None else _reply(answer)


def _reply(answer: Message) -> Reply:
    if answer.has_error():
        return BlockFailure(_reason(answer), timed_out=answer.error.code in _TIMED_OUT)
    try:
        return decode_partial(answer.content)
    except UpdateError as error:
        return BlockFailure(str(error), "refused")


def _reason(answer: Message) -> str:
    lines = (answer.error.reason or "").strip().splitlines()
    return one_line(lines[-1]) if lines else f"Flower error {answer.error.code}"


app = make_app()
