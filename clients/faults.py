"""Clients that misbehave on purpose: the clients' half of `[faults]`.

A fault is put in where it would arise: in a client's data (`crash`, `label_flip`), in its update
before anybody clips or checks it, or in the reply. Delays and hangs are on the server's simulated
clock: a client that is late trains as always. Updates are faulty copies, for a trainer uses its
memory again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from clients.training import BlockTrainer, ClientData, DataOf, Training, Transform
from shared_models.arrays import Arrays, scaled
from shared_models.config import Faults
from shared_models.faults import fault_of
from shared_models.messages import BlockRequest
from shared_models.objectives import Sums
from shared_models.partial import Partial

Kinds: TypeAlias = Mapping[int, str]
"""The kind of fault of each client that suffers one, by client id."""

_HUGE = 1e9


def with_faults(
    faults: Faults, training: Training, make: Callable[[Training], BlockTrainer]
) -> BlockTrainer:
    """Returns the trainer that `make` makes, but for the clients that suffer a fault.

    A block in which nobody's update is spoiled is trained as it always is, to the same bytes.
    """
    transforms = (spoil_updates(faults, training.seed), *training.transforms)
    plain = make(training)
    spoiling = functools.cache(lambda: make(replace(training, transforms=transforms)))

    def train(request: BlockRequest, data_of: DataOf) -> Partial:
        kinds = _kinds(faults, training.seed, request)
        trainer = spoiling() if _SPOILT.keys() & set(kinds.values()) else plain
        partial = trainer(request, _data_of(data_of, kinds, len(training.task.labels)))
        return _misreported(partial, request, kinds)

    return train


def spoil_updates(faults: Faults, seed: int) -> Transform:
    """Returns what makes the deltas of some clients unfit, or hostile."""

    def spoil(request: BlockRequest, client_id: int, sums: Sums) -> Sums:
        change = _SPOILT.get(fault_of(faults, seed, request.about, client_id) or "")
        return {**sums, "delta": change(sums["delta"], faults)} if change else sums

    return spoil


def _kinds(faults: Faults, seed: int, request: BlockRequest) -> Kinds:
    found = {k: fault_of(faults, seed, request.about, k) for k in request.client_ids}
    return {client_id: kind for client_id, kind in found.items() if kind}


def _data_of(data_of: DataOf, kinds: Kinds, labels: int) -> DataOf:
    def own(client_id: int) -> ClientData:
        kind = kinds.get(client_id)
        if kind == "crash":
            raise RuntimeError("injected crash")
        data = data_of(client_id)
        flipped = kind == "label_flip" and labels > 0
        return replace(data, y=labels - 1 - data.y) if flipped else data

    return own


def _misreported(partial: Partial, request: BlockRequest, kinds: Kinds) -> Partial:
    if "duplicate_reply" in kinds.values():
        twice = {client_id for client_id, kind in kinds.items() if kind == "duplicate_reply"}
        again = tuple(row for row in partial.rows if row.client_id in twice)
        partial = replace(partial, rows=partial.rows + again)
    if "stale_reply" in kinds.values():
        stage, number, attempt = request.about
        partial = replace(partial, about=(stage, number - 1, attempt))
    return partial


def _first_value(delta: Arrays, value: float) -> Arrays:
    """Returns the arrays with one value changed: the least that has to be noticed."""
    name, tensor = next(iter(delta.items()))
    spoilt = tensor.flatten().clone()
    spoilt[:1] = value
    return {**delta, name: spoilt.view(tensor.shape)}


def _first_array(delta: Arrays, change: Callable[[Tensor], Tensor]) -> Arrays:
    name, tensor = next(iter(delta.items()))
    return {**delta, name: change(tensor)}


def _without_last(delta: Arrays) -> Arrays:
    return dict(list(delta.items())[:-1])


_SPOILT: Mapping[str, Callable[[Arrays, Faults], Arrays]] = MappingProxyType(
    {
        "nan": lambda delta, _: _first_value(delta, float("nan")),
        "inf": lambda delta, _: _first_value(delta, float("inf")),
        "wrong_shape": lambda delta, _: _first_array(delta, lambda t: t.unsqueeze(0)),
        "wrong_dtype": lambda delta, _: _first_array(delta, lambda t: t.to(torch.float16)),
        "missing_key": lambda delta, _: _without_last(delta),
        "huge_norm": lambda delta, _: scaled(delta, _HUGE),
        "sign_flip": lambda delta, faults: scaled(delta, -faults.sign_flip_scale),
    }
)
