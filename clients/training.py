"""What a block trainer is given and gives back, and what all of them share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from shared_models.arrays import Arrays, Role, in_dtype, to_device, zeros_like
from shared_models.errors import UpdateError, WildflowerError, one_line
from shared_models.gradients import Gradient, under_autocast
from shared_models.messages import BlockRequest
from shared_models.objectives import (
    Batch,
    Broadcast,
    Ground,
    Noise,
    Objective,
    Sums,
    no_noise,
)
from shared_models.objectives.choice import MakeObjective
from shared_models.optimizers import Optimizer
from shared_models.partial import ClientState, Partial, Row, Sum
from shared_models.randomness import generator
from shared_models.task import Task

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ClientData:
    """One client's examples, ready for the model: `x` of shape `(n, *input.shape)`."""

    x: NDArray[Any]
    y: NDArray[np.int64]


Key: TypeAlias = tuple[str, int, int]
Transform: TypeAlias = Callable[[BlockRequest, int, Sums], Sums]
"""What happens to one client's update before it is checked and summed; the id is the client's."""


class Member(NamedTuple):
    """A client of a block: its id, what keys its randomness, its examples, what it has kept."""

    client_id: int
    key: Key
    data: ClientData
    state: ClientState


class Trained(NamedTuple):
    """What a client's training made."""

    sums: Sums
    metrics: Mapping[str, float]
    state: ClientState = {}  # noqa: RUF012 - nobody writes to it


@dataclass(frozen=True)
class Training:
    """How the clients of a stage train: what a block trainer needs besides weights and data.

    With `singles` a block's updates come back one by one instead of summed; with `one_rate` the
    learning rate is the same in all rounds.
    """

    task: Task
    make_objective: MakeObjective
    optimizer: Optimizer
    roles: Mapping[str, Role]
    seed: int
    epochs: int
    batch_size: int
    max_update_norm: float
    dtype: torch.dtype = torch.float32
    device: torch.device = _CPU
    autocast: torch.dtype | None = None
    compiled: bool = False
    singles: bool = False
    transforms: tuple[Transform, ...] = ()
    one_rate: bool = True

    @property
    def summed_as_they_are(self) -> bool:
        """Whether nobody needs to see single updates."""
        return not self.singles and not self.transforms

    def objective(self, gradient: Gradient) -> Objective:
        """Returns the task's objective with a way to take gradients."""
        if self.autocast is not None:
            gradient = under_autocast(gradient, self.device.type, self.autocast)
        return self.make_objective(Ground(self.task, self.optimizer, gradient, self.roles))


DataOf: TypeAlias = Callable[[int], ClientData]
BlockTrainer: TypeAlias = Callable[[BlockRequest, DataOf], Partial]


class Unfit(WildflowerError):
    """A trainer cannot train this task in this way; the message says why."""


def as_batch(data: ClientData, training: Training) -> Batch:
    """Returns all of a client's examples as tensors, floating input in the plan's dtype."""
    x = torch.from_numpy(data.x)
    x = x.to(training.device, training.dtype if x.is_floating_point() else None)
    return Batch(x, torch.from_numpy(data.y).to(training.device))


def batch_indices(
    examples: int, epochs: int, batch_size: int, order: np.random.Generator
) -> Iterator[torch.Tensor]:
    """Yields the positions of every shuffled batch; the last of an epoch may be smaller."""
    for _ in range(epochs):
        shuffled = torch.from_numpy(order.permutation(examples))
        yield from torch.split(shuffled, batch_size)


def broadcast_of(request: BlockRequest, training: Training) -> Broadcast:
    """Returns what the server sends, in the plan's dtype and where clients train."""

    def ready(arrays: Arrays) -> Arrays:
        return to_device(in_dtype(arrays, training.dtype), training.device)

    extras = {name: ready(arrays) for name, arrays in request.extras.items()}
    return Broadcast(ready(request.params), extras)


def member_of(
    request: BlockRequest, objective: Objective, server: Broadcast, client_id: int, data: ClientData
) -> Member:
    """Returns a client with what it has kept, or with what one begins with."""
    kept = request.states.get(client_id)
    if kept is None:
        state = objective.init_state(server.params)
    else:
        device = next(iter(server.params.values())).device
        state = {part: to_device(arrays, device) for part, arrays in kept.items()}
    return Member(client_id, (request.stage, request.round, client_id), data, state)


def order_of(training: Training, key: Key) -> np.random.Generator:
    """Returns the generator that shuffles one client's examples."""
    return generator(training.seed, *key, "order")


def noise_source(training: Training, objective: Objective, key: Key) -> Callable[[Batch], Noise]:
    """Returns what draws one client's noise, batch after batch."""
    if objective.draw is no_noise:
        return lambda _: {}  # a generator costs as much as a small step
    return functools.partial(objective.draw, generator(training.seed, *key, "noise"))


def empty_sums(objective: Objective, training: Training, server: Arrays) -> dict[str, Sum]:
    """Returns a zero for each of the objective's sums."""
    return {
        name: Sum(zeros_like(spec.like(server, training.roles)), 0.0)
        for name, spec in objective.sums.items()
    }


def accumulate(total: Sum, arrays: Arrays, weight: float) -> Sum:
    """Adds `weight * arrays` into the arrays of `total`, which belong to the caller alone."""
    return merge(total, Sum(arrays, weight), scale=weight)


def merge(total: Sum, part: Sum, scale: float = 1.0) -> Sum:
    """Adds `scale * part.arrays` into the arrays of `total`, which belong to the caller alone."""
    if total.arrays:
        own = [part.arrays[name] for name in total.arrays]
        torch._foreach_add_(list(total.arrays.values()), own, alpha=scale)
    return Sum(total.arrays, total.weight + part.weight)


def row_of(client_id: int, data_of: DataOf, work: Callable[[ClientData], Row]) -> Row:
    """Returns the row that `work` makes of a client's examples, or one that says what is wrong.

    Who has none, or whose `work` raises `UpdateError`, is refused; whatever else is raised, by
    `data_of` or by `work`, is a failure.
    """
    examples = 0
    try:
        data = data_of(client_id)
        examples = len(data.y)
        if examples == 0:
            return refused(client_id, 0, "the client has no examples")
        return work(data)
    except Exception as error:  # one client's fault must not take its block down
        return unfit(client_id, examples, error)


def unfit(client_id: int, examples: int, error: Exception) -> Row:
    """Returns the row of a client whose work raised: refused for an `UpdateError`, else failed."""
    if isinstance(error, UpdateError):
        return refused(client_id, examples, str(error))
    return failed(client_id, examples, error)


def failed(client_id: int, examples: int, error: Exception) -> Row:
    """Returns the row of a client whose training raised."""
    reason = one_line(f"{type(error).__name__}: {error}")
    return Row(client_id, examples, {}, "failed", reason)


def refused(client_id: int, examples: int, reason: str) -> Row:
    """Returns the row of a client whose update does not pass."""
    return Row(client_id, examples, {}, "refused", one_line(reason))
