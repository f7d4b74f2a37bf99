"""The plain block trainer: one client after another. Slow, readable, the reference for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared_models.arrays import Arrays, Role, add, cast, with_role
from shared_models.checks import SUM_ROLES, check_update
from shared_models.errors import UpdateError
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
    server = _in_dtype(request.params, training.dtype)
    sums = {name: _zero(server, training.roles, role) for name, role in SUM_ROLES.items()}
    rows = []
    for client_id in request.client_ids:
        update, row = _train_and_check(training, request, server, client_id, data_of)
        rows.append(row)
        if update is not None:
            sums = {name: _accumulate(sums[name], update[name], row.examples) for name in sums}
    return Partial(sums, tuple(rows))


def _in_dtype(arrays: Arrays, dtype: torch.dtype) -> Arrays:
    floating = {name: t for name, t in arrays.items() if t.is_floating_point()}
    return {**arrays, **cast(floating, dtype)}


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
        update, metrics = train_client(training, request, server, client_id, data)
        check_update(update, examples, server, training.roles, training.max_update_norm)
    except UpdateError as error:
        return None, Row(client_id, examples, {}, "refused", str(error))
    except Exception as error:  # one client's fault must not take its block down
        return None, Row(client_id, examples, {}, "failed", f"{type(error).__name__}: {error}")
    return update, Row(client_id, examples, metrics)


def train_client(
    training: Training, request: BlockRequest, server: Arrays, client_id: int, data: ClientData
) -> tuple[Sums, dict[str, float]]:
    """Runs one client's local epochs; returns its sums and each metric's mean over examples."""
    objective = training.objective
    rng = generator(training.seed, request.stage, request.round, client_id, "local")
    local = objective.begin(server, {})
    totals: dict[str, float] = {}
    for batch in batches(data, training, rng):
        local, metrics = objective.step(local, batch, objective.draw(rng, batch))
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(batch.y)
    update, _ = objective.end(local)
    seen = max(1, training.epochs * len(data.y))
    return update, {name: total / seen for name, total in totals.items()}


def batches(data: ClientData, training: Training, rng: np.random.Generator) -> Iterator[Batch]:
    """Yields the shuffled batches of every epoch; the last of an epoch may be smaller."""
    x = torch.from_numpy(data.x)
    x = x.to(training.dtype) if x.is_floating_point() else x
    y = torch.from_numpy(data.y)
    for _ in range(training.epochs):
        order = torch.from_numpy(rng.permutation(len(y)))
        for index in torch.split(order, training.batch_size):
            yield Batch(x[index], y[index])
