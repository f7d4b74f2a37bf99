"""The ClientApp's side: hands a message over and waits for its answer, but not for ever."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc
from flwr.app import ConfigRecord, RecordDict

from clients.warm.packing import pack, unpack
from clients.warm.protocol import METHOD, VERSION, cut, join
from clients.warm.trainer_pb2 import Chunk, Header
from shared_models.errors import WildflowerError
from shared_models.tasks.own import file_of, is_own
from shared_models.verbs import HELLO, LEFT_OUT

CLIENT_DEADLINE_S = 600.0
# How long a message waits that does not say so: as the server's do, which sends a node two.
SPARE_S = 30.0
_AHEAD = 2

T = TypeVar("T")


class TrainerFailed(WildflowerError):
    """The trainer gave no answer; the message is what the server records of this client."""


def ask(
    address: str, verb: str, config: str, content: RecordDict, lives_s: float | None = None
) -> RecordDict:
    """Returns the warm trainer's answer; raises `TrainerFailed` with the reason for the server.

    The message waits for those before it, and for the trainer's data, for as long as it has to
    live: `lives_s`. The time that its own answer may take begins when the trainer is at it.
    """
    header = Header(version=VERSION, verb=verb, config=config)
    if is_own(task := str(tomllib.loads(config).get("task"))):
        header.task, header.task_source = task, own_source(task)
    patience = patience_s(verb, config, content)
    wait_s = _AHEAD * patience + SPARE_S if lives_s is None else lives_s
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(
            METHOD,
            request_serializer=Chunk.SerializeToString,
            response_deserializer=Chunk.FromString,
        )
        answer = _answer(call(cut(header, _packed(verb, content))), wait_s, patience)
    return unpack(answer)


def _packed(verb: str, content: RecordDict) -> bytes:
    """Returns the content as bytes; the service itself reads why its device is left out."""
    if verb != LEFT_OUT:
        return pack(content)
    return str(content.config_records.get(LEFT_OUT, ConfigRecord()).get("reason", "")).encode()


def _answer(call: Any, wait_s: float, patience: float) -> bytes:
    """Returns what a call brings; a call that is late is cancelled, which ends its training."""
    with ThreadPoolExecutor(2) as threads:
        begun = threads.submit(call.initial_metadata)
        answer = threads.submit(lambda: join(_received(call)))
        try:
            _within(
                begun, wait_s, f"the trainer was busy, or still read its data, for {wait_s:g} s"
            )
            hung = f"training hung for {patience:g} s; its trainer was ended and started anew"
            return _within(answer, patience, hung)[1]
        except grpc.RpcError as error:
            raise TrainerFailed(_reason(error)) from None
        finally:
            call.cancel()  # the threads end too


def _within(future: Future[T], seconds: float, otherwise: str) -> T:
    try:
        return future.result(seconds)
    except TimeoutError:
        raise TrainerFailed(otherwise) from None


def _received(answers: Iterator[Chunk]) -> Iterator[Chunk]:
    yield from answers


def own_source(task: str) -> str:
    """Returns the file of a user's own task, which travels in the bundle beside our packages."""
    path = Path(__file__).parents[2] / file_of(task)
    try:
        return path.read_text()
    except OSError:
        raise TrainerFailed(f"task {task!r}: there is no {path.name} in the bundle") from None


def patience_s(verb: str, config: str, content: RecordDict) -> float:
    """Returns how long an answer may take: the config's deadline for each client of the block."""
    each = float(tomllib.loads(config).get("client_deadline_s", CLIENT_DEADLINE_S))
    if verb == HELLO:
        return max(each, CLIENT_DEADLINE_S)  # data is loaded then
    ids = content.config_records.get("request", ConfigRecord()).get("client_ids")
    return each * max(len(ids), 1) if isinstance(ids, list) else each


def _reason(error: grpc.RpcError) -> str:
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return "the device's trainer is not there; `wildflower client` is what starts it"
    return str(error.details())
