"""The ServerApp: Flower's grid on one side, the coordinator's `Transport` on the other."""

from __future__ import annotations

import functools
import itertools
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from server.device import check_devices
from server.events import Notice, Observer
from server.fleet import CLIENT_DEADLINE_S, Letter, exchange
from server.fleet_register import Register
from server.fleet_run import fleet_folder, fleet_register, held_for_run, recorded
from server.handover import handover_notes
from server.manifest import Engine
from server.plain import print_event
from server.population import Enough, Roll
from server.replies import failure_of, reason_of
from server.roll_call import RollTimes, call_roll
from server.run import learn, open_run
from server.run_folder import RunFolder, new_run_folder
from server.stage import Transport
from shared_models.config import BUILTIN, Config, parse_config
from shared_models.errors import RoundError, UpdateError
from shared_models.init_weights import settled_init
from shared_models.messages import ABSENT, BlockFailure, BlockRequest, Hello, Reply, Send
from shared_models.stage_task import check_calibration
from shared_models.verbs import CALIBRATE_BLOCK, EVALUATE_BLOCK, HELLO, TRAIN_BLOCK
from shared_models.wire import (
    decode_hello,
    decode_partial,
    encode_broadcast,
    encode_request,
)

RunConfig: TypeAlias = Mapping[str, bool | float | int | str | bytes]


def make_app(observe: Observer = print_event) -> ServerApp:
    """Returns a ServerApp that runs the learning stages and tells `observe` about it."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.set_num_threads(1)  # as in the workers: one engine may not sum in another order
        settings = context.run_config
        if settings.get("run"):
            _train_fleet(grid, settings, context.run_id, observe)
            return
        given = settings.get("out")
        config = _config(settings)
        out = Path(str(given)) if given else new_run_folder(Path("runs"), config.name)
        if not given:
            observe(Notice(f"run folder {out.absolute()}"))
        config, folder = _open(settings, out, observe)
        with folder.held():
            learn(config, folder, make_transport(grid, config.client_deadline_s), observe)

    return server_app


def _train_fleet(grid: Grid, settings: RunConfig, flower_run: int, observe: Observer) -> None:
    path = fleet_folder(str(settings["run"]), str(settings.get("out") or ""), os.environ)
    with recorded(path, flower_run, observe) as told:
        config, folder = _open(settings, path, told)
        with held_for_run(folder):
            fleet = Fleet(str(settings["run"]), fleet_register(os.environ), told)
            transport = make_transport(grid, config.client_deadline_s, fleet)
            learn(config, folder, transport, told)


def _open(settings: RunConfig, path: Path, observe: Observer) -> tuple[Config, RunFolder]:
    """Returns the run's config, with all of its plan settled, and its folder.

    Where nobody measured, nodes settle the plan in the same way; the folder has to say how.
    """
    config = settled_init(_config(settings))
    config = config.model_copy(update={"plan": config.settled_plan})
    check_devices(config)
    check_calibration(config)
    resume = bool(settings.get("resume"))
    for note in () if resume else handover_notes(config):
        observe(Notice(note))
    return config, open_run(config, path, resume=resume)


def _config(settings: RunConfig) -> Config:
    return parse_config(str(settings.get("config") or BUILTIN), "run config")


@dataclass(frozen=True)
class Fleet:
    """What a run knows of its fleet: its own id there, the devices, and whom to tell."""

    run_id: str | None = None
    register: Register | None = None
    observe: Observer | None = None
    times: RollTimes = field(default_factory=RollTimes)


def make_transport(
    grid: Grid, client_deadline_s: float | None = None, fleet: Fleet | None = None
) -> Transport:
    """Returns the coordinator's view of a grid; a deadline holds where the grid can cut off."""
    known = fleet or Fleet()
    engine = Engine(getattr(grid, "engine", "flower"), getattr(grid, "workers", None))
    patience = client_deadline_s if getattr(grid, "cuts_off", False) else None
    local = hasattr(grid, "engine")

    def hello(enough: Enough) -> Roll:
        if local:
            return _hello_here(grid)
        return call_roll(grid, enough, known.times, known.register, known.observe)

    def send(kind: str, requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        if not local:
            yield from _send_out(grid, kind, requests, client_deadline_s or CLIENT_DEADLINE_S)
            return
        # Requests are taken when the grid takes their messages: each may hold much.
        sent: list[str] = []
        messages = _messages(kind, requests, tuple(grid.get_node_ids()), patience)
        yield from _in_order(sent, grid.send_and_receive(_noted(messages, sent)))

    train: Send = functools.partial(send, TRAIN_BLOCK)
    evaluate: Send = functools.partial(send, EVALUATE_BLOCK)
    calibrate: Send = functools.partial(send, CALIBRATE_BLOCK)
    return Transport(hello, train, evaluate, calibrate, engine, known.run_id)


def _hello_here(grid: Grid) -> Roll:
    answers = grid.send_and_receive([Message(RecordDict(), n, HELLO) for n in grid.get_node_ids()])
    return Roll({answer.metadata.src_node_id: _hello(answer) for answer in answers})


def _hello(answer: Message) -> Hello:
    if answer.has_error():
        raise RoundError(f"node {answer.metadata.src_node_id} did not answer: {reason_of(answer)}")
    try:
        return decode_hello(answer.content)
    except UpdateError as error:
        raise RoundError(f"node {answer.metadata.src_node_id}: {error}") from None


def _send_out(
    grid: Grid, kind: str, requests: Iterable[BlockRequest], client_deadline_s: float
) -> Iterator[Reply]:
    """Yields the replies of a fleet in the order of the requests."""
    early: dict[int, Reply] = {}
    letters = _letters(kind, requests, tuple(grid.get_node_ids()), client_deadline_s)
    waiting = exchange(grid, letters)
    for place in itertools.count():
        while place not in early:
            if (found := next(waiting, None)) is None:
                return
            known, answer = found
            early[known] = answer if isinstance(answer, BlockFailure) else _reply(answer)
        yield early.pop(place)


def _letters(
    kind: str, requests: Iterable[BlockRequest], nodes: tuple[int, ...], client_deadline_s: float
) -> Iterator[Letter]:
    for place, (request, content) in enumerate(_contents(requests)):
        anyone = nodes[place % len(nodes)] if nodes else ABSENT
        node = anyone if request.node is None else request.node
        write = functools.partial(_written, kind, content, node)
        yield Letter(node, client_deadline_s * len(request.client_ids), write)


def _written(kind: str, content: RecordDict, node: int, lives_s: float) -> Message:
    return Message(content, node, kind, ttl=lives_s)


def _contents(requests: Iterable[BlockRequest]) -> Iterator[tuple[BlockRequest, RecordDict]]:
    """Yields each request as records; the weights are encoded once for those that share them."""
    params, broadcast = None, {}
    for request in requests:
        if params is not request.params:
            params, broadcast = request.params, encode_broadcast(request)
        yield request, encode_request(request, broadcast)


def _messages(
    kind: str, requests: Iterable[BlockRequest], nodes: tuple[int, ...], patience: float | None
) -> Iterator[Message]:
    """Yields one message per request; a block that any node may train goes round the nodes.

    A message lives for `patience` seconds a client.
    """
    for place, (request, content) in enumerate(_contents(requests)):
        node = nodes[place % len(nodes)] if request.node is None else request.node
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
        return failure_of(answer)
    try:
        return decode_partial(answer.content)
    except UpdateError as error:
        return BlockFailure(str(error), "refused")


app = make_app()
