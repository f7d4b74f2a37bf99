"""Our values as Flower records and back. Decoding returns a value or raises `UpdateError`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from shared_models.arrays import Arrays
from shared_models.errors import UpdateError, one_line
from shared_models.messages import BlockRequest, Hello, Kept
from shared_models.partial import About, ClientState, Partial, Row, Status, Sum

_RAW = "wildflower.raw"
_DTYPES = frozenset({"float32", "float64", "float16", "int64", "int32", "uint8", "bool"})
_P = ParamSpec("_P")
_T = TypeVar("_T")
_STATUSES: tuple[Status, ...] = ("ok", "refused", "failed", "late")


def encode_arrays(arrays: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Returns named arrays as Flower's record, which reads their memory: do not write to it."""
    return _filled(ArrayRecord(), arrays)


def _filled(record: ArrayRecord, arrays: Mapping[str, torch.Tensor]) -> ArrayRecord:
    for name, tensor in arrays.items():  # its constructor would make them anew, from bytes
        record[name] = _encode(tensor)
    return record


class _Lent(Array):
    """An array whose bytes are the tensor's own, until somebody pickles it."""

    __qualname__ = "Array"  # what a SuperLink reads off its class

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        return Array, (self.dtype, self.shape, self.stype, bytes(self.data))


def _encode(tensor: torch.Tensor) -> Array:
    values = tensor.cpu().contiguous().numpy()
    # Not Flower's `numpy.save` format, which copies three times on each side.
    array = _Lent(str(values.dtype), tuple(values.shape), _RAW, b"")
    array.data = values.reshape(-1).view(np.uint8).data  # type: ignore[assignment]
    return array


def decode_arrays(record: ArrayRecord) -> Arrays:
    """Returns views into the record's bytes, which must not be written to; nothing is unpickled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have memory that it may write to
        return {name: _decode(array) for name, array in record.items()}


def _decode(array: Array) -> torch.Tensor:
    if array.stype != _RAW or array.dtype not in _DTYPES:
        raise UpdateError(f"arrays of type {array.dtype!r} as {array.stype!r} are not understood")
    if any(size < 0 for size in array.shape):  # numpy would take it for "whatever fits"
        raise UpdateError(f"an array says that its shape is {array.shape}")
    if array.dtype == "bool" and np.frombuffer(array.data, np.uint8).max(initial=0) > 1:
        raise UpdateError("an array of booleans holds neither 0 nor 1")
    return torch.from_numpy(np.frombuffer(array.data, array.dtype).reshape(array.shape))


def encode_hello(hello: Hello) -> RecordDict:
    """Returns a node's answer as records."""
    about: dict[str, Any] = {
        "client_ids": list(hello.client_ids),
        "examples": list(hello.examples),
        "shared": hello.shared,
        "data_sha256": hello.data_sha256,
        "keeps_states": hello.keeps_states,
        "labelled": list(hello.labelled),
    }
    return RecordDict({"hello": ConfigRecord(about), "versions": ConfigRecord({**hello.versions})})


class OwnRecord(ArrayRecord):
    """Arrays that are one message's own: no engine shares them between messages."""


def encode_broadcast(request: BlockRequest) -> dict[str, ArrayRecord]:
    """Returns what a round tells everybody, as records: encoded once, shared by all its blocks."""
    extras = {f"extra.{name}": encode_arrays(a) for name, a in request.extras.items()}
    return {"params": encode_arrays(request.params), **extras}


def encode_request(request: BlockRequest, broadcast: Mapping[str, ArrayRecord]) -> RecordDict:
    """Returns a request as records; `broadcast` is from `encode_broadcast`."""
    about: dict[str, Any] = {
        "stage": request.stage,
        "round": request.round,
        "attempt": request.attempt,
        "block": request.block,
        "client_ids": list(request.client_ids),
    }
    if request.kept is not None:
        since = [request.kept.since.get(client_id, 0) for client_id in request.client_ids]
        about |= {"run": request.kept.run, "since": since}
    return RecordDict(
        {"request": ConfigRecord(about), **broadcast, **_encode_states(request.states)}
    )


def encode_partial(partial: Partial) -> RecordDict:
    """Returns a partial as records: one of arrays per named sum, one of columns for the rows."""
    rows = partial.rows
    columns: dict[str, Any] = {
        "client_id": [row.client_id for row in rows],
        "examples": [row.examples for row in rows],
        "status": [row.status for row in rows],
        "reason": [row.reason for row in rows],
    }
    # In the task's order: its first metric is the one that it is judged by.
    for name in dict.fromkeys(name for row in rows for name in row.metrics):
        # NaN stands for "not reported" on the wire only; a reported NaN was refused before.
        columns[f"metric.{name}"] = [row.metrics.get(name, float("nan")) for row in rows]
    weights: dict[str, Any] = {name: part.weight for name, part in partial.sums.items()}
    records = {f"sum.{name}": encode_arrays(part.arrays) for name, part in partial.sums.items()}
    records |= {f"single.{name}": encode_arrays(a) for name, a in partial.singles.items()}
    stage, number, attempt = partial.about or ("", 0, 0)
    about: dict[str, Any] = {"stage": stage, "round": number, "attempt": attempt}
    return RecordDict(
        {
            "about": ConfigRecord(about),
            "rows": ConfigRecord(columns),
            "weights": ConfigRecord(weights),
            **records,
            **_encode_states(partial.states),
        }
    )


def _encode_states(states: Mapping[int, ClientState]) -> dict[str, ArrayRecord]:
    return {
        f"state.{client_id}.{part}": _filled(OwnRecord(), arrays)
        for client_id, state in states.items()
        for part, arrays in state.items()
    }


def _decoder(decode: Callable[_P, _T]) -> Callable[_P, _T]:
    """Turns whatever a malformed message makes Python raise into our own error."""

    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return decode(*args, **kwargs)
        except UpdateError as error:  # its words may be the sender's
            raise UpdateError(one_line(str(error))) from None
        except Exception as error:
            told = one_line(f"{type(error).__name__}: {error}")
            raise UpdateError(f"malformed message: {told}") from None

    return wrapped


@_decoder
def decode_hello(content: RecordDict) -> Hello:
    """Returns a node's answer; raises `UpdateError` when it is malformed."""
    about, versions = content.config_records["hello"], content.config_records["versions"]
    client_ids, examples = _integers(about, "client_ids"), _integers(about, "examples")
    labelled = _integers(about, "labelled") if "labelled" in about else ()  # as for the states
    for counts in (examples, labelled or examples):
        if len(client_ids) != len(counts):
            raise UpdateError(f"hello names {len(client_ids)} clients and {len(counts)} counts")
    return Hello(
        client_ids,
        examples,
        _typed(bool, about["shared"]),
        _typed(str, about["data_sha256"]),
        {name: _typed(str, version) for name, version in versions.items()},
        _typed(bool, about.get("keeps_states", False)),  # older ones do not say
        labelled,
    )


@_decoder
def decode_request(content: RecordDict) -> BlockRequest:
    """Returns a request; raises `UpdateError` when it is malformed."""
    about = content.config_records["request"]
    records, client_ids = content.array_records, _integers(about, "client_ids")
    return BlockRequest(
        *_about(about),
        _integer(about["block"]),
        client_ids,
        decode_arrays(records["params"]),
        extras=_decode_named("extra", records),
        states=_decode_states(records),
        kept=_decode_kept(about, client_ids),
    )


def _decode_kept(about: ConfigRecord, client_ids: tuple[int, ...]) -> Kept | None:
    if "run" not in about:
        return None
    since = dict(zip(client_ids, _integers(about, "since"), strict=True))
    return Kept(_typed(str, about["run"]), since)


@_decoder
def decode_partial(content: RecordDict) -> Partial:
    """Returns a partial; raises `UpdateError` when it is malformed."""
    weights, records = content.config_records["weights"], content.array_records
    arrays = _decode_named("sum", records)
    if set(arrays) != set(weights):
        raise UpdateError(f"there are sums {sorted(arrays)} and weights {sorted(weights)}")
    sums = {name: Sum(own, _number(weights[name])) for name, own in arrays.items()}
    rows = tuple(_rows(content.config_records["rows"]))
    about = _about(content.config_records["about"])
    return Partial(sums, rows, _decode_named("single", records), _decode_states(records), about)


def _about(record: ConfigRecord) -> About:
    stage = _typed(str, record["stage"])
    return stage, _integer(record["round"]), _integer(record["attempt"])


def _decode_named(kind: str, records: Mapping[str, ArrayRecord]) -> dict[str, Arrays]:
    return {
        name.removeprefix(f"{kind}."): decode_arrays(record)
        for name, record in records.items()
        if name.startswith(f"{kind}.")
    }


def _decode_states(records: Mapping[str, ArrayRecord]) -> dict[int, ClientState]:
    states: dict[int, ClientState] = {}
    for name, arrays in _decode_named("state", records).items():
        client_id, dot, part = name.partition(".")
        if not dot or client_id != str(int(client_id)):  # two spellings would be one client
            raise UpdateError(f"{name!r} names no part of a client's state")
        states.setdefault(int(client_id), {})[part] = arrays
    return states


def _rows(columns: ConfigRecord) -> Iterable[Row]:
    client_ids, examples = _integers(columns, "client_id"), _integers(columns, "examples")
    metrics = {
        name.removeprefix("metric."): [_number(value) for value in _listed(columns, name)]
        for name in columns
        if name.startswith("metric.")
    }
    for name, values in metrics.items():
        if len(values) != len(client_ids):
            raise UpdateError(f"{len(values)} clients report {name!r}, of {len(client_ids)}")
    states = zip(_listed(columns, "status"), _listed(columns, "reason"), strict=True)
    for place, (client_id, count, (status, reason)) in enumerate(
        zip(client_ids, examples, states, strict=True)
    ):
        if status not in _STATUSES:
            raise UpdateError(f"client {client_id}: unknown status {status!r}")
        told = {name: values[place] for name, values in metrics.items()}
        own = {name: value for name, value in told.items() if not math.isnan(value)}
        yield Row(client_id, count, own, status, _typed(str, reason))


def _listed(record: ConfigRecord, key: str) -> list[Any]:
    values = record[key]
    if not isinstance(values, list):
        raise UpdateError(f"{key}: expected a list, got {type(values).__name__}")
    return values


def _integers(record: ConfigRecord, key: str) -> tuple[int, ...]:
    return tuple(_integer(value) for value in _listed(record, key))


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise UpdateError("expected int, got bool")
    if not -(2**63) <= _typed(int, value) < 2**63:  # Flower carries larger ones, no file of ours
        raise UpdateError(f"the integer {value} takes more than 64 bits")
    return int(value)


def _typed(kind: type[_T], value: Any) -> _T:
    if not isinstance(value, kind):
        raise UpdateError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise UpdateError(f"expected a number, got {type(value).__name__}")
    return float(value)
