"""The ClientApp's side: hands a message over and waits for its answer, but not for ever."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import grpc
from flwr.app import ConfigRecord, RecordDict

from clients.warm.packing import pack, unpack
from clients.warm.protocol import BEGUN, METHOD, VERSION, cut, join
from clients.warm.trainer_pb2 import Chunk, Header
from shared_models.errors import WildflowerError
from shared_models.tasks.own import file_of, is_own
from shared_models.verbs import HELLO

CLIENT_DEADLINE_S = 600.0


class TrainerFailed(WildflowerError):
    """The trainer gave no answer; the message is what the server records of this client."""


def ask(address: str, verb: str, config: str, content: RecordDict) -> RecordDict:
    """Returns the warm trainer's answer; raises `TrainerFailed` with the reason for the server."""
    header = Header(version=VERSION, verb=verb, config=config)
    if is_own(task := str(tomllib.loads(config).get("task"))):
        header.task, header.task_source = task, own_source(task)
    patience = patience_s(verb, config, content)
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(
            METHOD,
            request_serializer=Chunk.SerializeToString,
            response_deserializer=Chunk.FromString,
        )
        try:
            _, answer = join(_received(call(cut(header, pack(content)), timeout=patience)))
        except grpc.RpcError as error:
            raise TrainerFailed(_reason(error, patience)) from None
    return unpack(answer)


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


def _reason(error: grpc.RpcError, patience: float) -> str:
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        if set(BEGUN) <= {tuple(pair) for pair in error.initial_metadata() or ()}:
            return f"training hung for {patience:g} s; its trainer was ended and started anew"
        return f"the trainer was busy, or still read its data, for {patience:g} s"
    if code == grpc.StatusCode.UNAVAILABLE:
        return "the device's trainer is not there; `wildflower client` is what starts it"
    return str(details)
