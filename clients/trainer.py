"""The plain block trainer: one client after another. Slow, readable, the reference for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared_models.arrays import Arrays, Role, add, in_dtype, with_role
from shared_models.checks import check_metrics, check_update
from shared_models.errors import UpdateError, one_line
from shared_models.messages import BlockRequest
from shared_models.objectives import Batch, Objective, Sums
from shared_models.partial import Partial, Row, Sum
from shared_models.randomness import generator


@dataclass(frozen=True)
class ClientData:
    """One client's examples, ready for the model: `x` of shape `(n, *input.shape)`."""

    x: NDArray[Any]
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Training:
    """How the clients of a stage train: what the block trainer needs besides weights and data."""

    objective: Objective
    roles: Mapping[str, Role]
    seed: int
    epochs: int
    batch_size: int
    max_update_norm: float
    dtype: torch.dtype = torch.float32


def train_block(
    training: Training, request: BlockRequest, data_of: Callable[[int], ClientData]
) -> Partial:
    """Trains the clients of a block in order and returns their sums, in the plan's dtype.

    A client whose training raises is `failed`, one whose update does not pass `check_update` is
    `refused`; neither is summed, both are named in the rows.
    """
    server = in_dtype(request.params, training.dtype)
    specs = training.objective.sums
    sums = {name: _zero(server, training.roles, spec.role) for name, spec in specs.items()}
    rows = []
    for client_id in request.client_ids:
        update, row = _train_and_check(training, request, server, client_id, data_of)
        rows.append(row)
        if update is not None:
            sums = {
                name: _accumulate(sums[name], update[name], spec.weigh(row.examples))
                for name, spec in specs.items()
            }
    return Partial(sums, tuple(rows))


def _zero(server: Arrays, roles: Mapping[str, Role], role: Role) -> Sum:
    own = with_role(server, roles, role)
    return Sum({name: torch.zeros_like(tensor) for name, tensor in own.items()}, 0.0)


def _accumulate(total: Sum, arrays: Arrays, weight: int) -> Sum:
    return Sum(add(total.arrays, arrays, weight), total.weight + weight)


def _train_and_check(
    training: Training,
    request: BlockRequest,
    server: Arrays,
    client_id: int,
    data_of: Callable[[int], ClientData],
) -> tuple[Sums | None, Row]:
    examples = 0
    try:
        data = data_of(client_id)
        examples = len(data.y)
        if examples == 0:
            raise UpdateError("the client has no examples")
        update, metrics = train_client(training, request, server, client_id, data)
        specs = training.objective.sums
        check_update(update, specs, server, training.roles, training.max_update_norm)
        check_metrics(metrics)
    except UpdateError as error:
        return None, Row(client_id, examples, {}, "refused", one_line(str(error)))
    except Exception as error:  # one client's fault must not take its block down
        reason = one_line(f"{type(error).__name__}: {error}")
        return None, Row(client_id, examples, {}, "failed", reason)
    return update, Row(client_id, examples, metrics)


def train_client(
    training: Training, request: BlockRequest, server: Arrays, client_id: int, data: ClientData
) -> tuple[Sums, dict[str, float]]:
    """Runs one client's local epochs; returns its sums and each metric's mean over examples."""
    objective, key = training.objective, (request.stage, request.round, client_id)
    order = generator(training.seed, *key, "order")
    noise = generator(training.seed, *key, "noise")
    everything = as_batch(data, training.dtype)
    local = objective.begin(server, {}, everything)
    totals: dict[str, float] = {}
    for index in batch_indices(len(data.y), training.epochs, training.batch_size, order):
        batch = Batch(everything.x[index], everything.y[index])
        local, metrics = objective.step(local, batch, objective.draw(noise, batch))
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(index)
    update, _, told = objective.end(local)
    means = {name: total / (training.epochs * len(data.y)) for name, total in totals.items()}
    return update, {**means, **{name: float(value) for name, value in told.items()}}


def as_batch(data: ClientData, dtype: torch.dtype) -> Batch:
    """Returns all of a client's examples as tensors, floating input in `dtype`."""
    x = torch.from_numpy(data.x)
    return Batch(x.to(dtype) if x.is_floating_point() else x, torch.from_numpy(data.y))


def batch_indices(
    examples: int, epochs: int, batch_size: int, order: np.random.Generator
) -> Iterator[torch.Tensor]:
    """Yields the positions of every shuffled batch; the last of an epoch may be smaller."""
    for _ in range(epochs):
        shuffled = torch.from_numpy(order.permutation(examples))
        yield from torch.split(shuffled, batch_size)
