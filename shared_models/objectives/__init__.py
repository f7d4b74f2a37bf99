"""What a client does with its data: three pure functions over named arrays.

The plain loop calls them one client at a time; a vectorised trainer maps them over many. All
randomness is drawn outside `step`, by `draw`, and passed in as `noise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from shared_models.arrays import Arrays, Role
from shared_models.gradients import Gradient
from shared_models.optimizers import Optimizer
from shared_models.partial import STANDARD_SUMS, ClientState, Sum, SumSpec

if TYPE_CHECKING:
    from shared_models.task import Task

Noise: TypeAlias = dict[str, Tensor]
Metrics: TypeAlias = dict[str, Tensor]
Sums: TypeAlias = dict[str, Arrays]
Means: TypeAlias = Mapping[str, Arrays]
Extras: TypeAlias = dict[str, Arrays]


class Batch(NamedTuple):
    """Some examples of one client: `x` of shape `(n, *input.shape)`, `y` of shape `(n, ...)`."""

    x: Tensor
    y: Tensor


def no_noise(_: np.random.Generator, __: Batch) -> Noise:
    """Draws nothing: for models without dropout or other noise."""
    return {}


@dataclass(frozen=True)
class View:
    """What a model is shown instead of the examples, where labels play no part.

    * `draw(generator, batch) -> noise`: all that is random about it.
    * `show(batch, noise) -> batch`: `x` is what the model sees, `y` what its outputs are compared
      with.
    """

    draw: Callable[[np.random.Generator, Batch], Noise]
    show: Callable[[Batch, Noise], Batch]


class Broadcast(NamedTuple):
    """What the server sends to everybody: the weights, and what the objective adds to them."""

    params: Arrays
    extras: Extras


def _nothing(_: Arrays) -> dict[str, Arrays]:
    return {}


def _as_they_are(means: Means, extras: Extras, _: float) -> tuple[Means, Extras]:
    return means, extras


@dataclass(frozen=True)
class ServerSide:
    """The server's half of an objective: what it keeps and tells all clients besides the weights.

    * `init(params) -> extras`: by name, before round 1.
    * `absorb(means, extras, share) -> (means, extras)`: what it makes of a round's means, before
      the server optimiser; `share` is the part of all clients that they are means over.
    """

    init: Callable[[Arrays], Extras] = _nothing
    absorb: Callable[[Means, Extras, float], tuple[Means, Extras]] = _as_they_are


@dataclass(frozen=True)
class Terms:
    """What server and clients both know of a round's local training.

    `rate` is the learning rate of plain descent, 0 where the optimiser is another.
    """

    epochs: int
    batch_size: int
    rate: float
    max_norm: float
    extras: Mapping[str, Arrays]

    def steps(self, examples: int) -> int:
        """Returns how many steps a client takes."""
        return self.epochs * math.ceil(examples / self.batch_size)


def _anything(_: Mapping[str, Sum], __: Sequence[int], ___: Terms) -> None:
    pass


def _servers_own(params: Arrays, _: ClientState) -> Arrays:
    return params


@dataclass(frozen=True)
class Objective:
    """Local training of one client.

    * `begin(broadcast, client_state, data) -> local`: `data` are all the client's examples,
      `local` is any nest of dicts, tuples, tensors.
    * `step(local, batch, noise) -> (local, metrics)`: one batch; metrics are means over the batch.
    * `end(local) -> (sums, client_state, metrics)`: sums by name, each "add me".
    * `draw(generator, batch) -> noise`: what `step` will need.
    * `sums`: which sums `end` returns, what they are made of and how they are weighted.
    * `init_state(params) -> client_state`: of a client that takes part for the first time.
    * `own_model(params, client_state) -> arrays`: the model that a client would use itself.
    * `server`: the server's half.
    * `check(sums, examples, terms)`: raises `UpdateError` when honest clients with so many examples
      each could not have sent these sums; for one client's, and for those of a block.
    * `descent`: set when local training is nothing but this optimiser's steps down the task's loss:
      then a faster trainer may take them in another way.
    """

    begin: Callable[[Broadcast, ClientState, Batch], Any]
    step: Callable[[Any, Batch, Noise], tuple[Any, Metrics]]
    end: Callable[[Any], tuple[Sums, ClientState, Metrics]]
    draw: Callable[[np.random.Generator, Batch], Noise] = no_noise
    sums: Mapping[str, SumSpec] = field(default_factory=lambda: STANDARD_SUMS)
    init_state: Callable[[Arrays], ClientState] = _nothing
    own_model: Callable[[Arrays, ClientState], Arrays] = _servers_own
    server: ServerSide = field(default_factory=ServerSide)
    descent: Optimizer | None = None
    check: Callable[[Mapping[str, Sum], Sequence[int], Terms], None] = _anything

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep something from round to round."""
        return self.init_state is not _nothing


@dataclass(frozen=True)
class Ground:
    """What an objective is built on."""

    task: Task
    optimizer: Optimizer
    gradient: Gradient
    roles: Mapping[str, Role]
