"""What a client does with its data: three pure functions over named arrays.

The plain loop calls them one client at a time; a vectorised trainer maps them over many. All
randomness is drawn outside `step`, by `draw`, and passed in as `noise`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from shared_models.arrays import Arrays
from shared_models.optimizers import Optimizer
from shared_models.partial import STANDARD_SUMS, ClientState, SumSpec

Noise: TypeAlias = dict[str, Tensor]
Metrics: TypeAlias = dict[str, Tensor]
Sums: TypeAlias = dict[str, Arrays]


class Batch(NamedTuple):
    """Some examples of one client: `x` of shape `(n, *input.shape)`, `y` of shape `(n, ...)`."""

    x: Tensor
    y: Tensor


def no_noise(_: np.random.Generator, __: Batch) -> Noise:
    """Draws nothing: for models without dropout or other noise."""
    return {}


@dataclass(frozen=True)
class Objective:
    """Local training of one client.

    * `begin(server_arrays, client_state, data) -> local`: `data` are all the client's examples,
      `local` is any nest of dicts, tuples, tensors.
    * `step(local, batch, noise) -> (local, metrics)`: one batch; metrics are means over the batch.
    * `end(local) -> (sums, client_state, metrics)`: sums by name, each "add me".
    * `draw(generator, batch) -> noise`: what `step` will need.
    * `sums`: which sums `end` returns, what they are made of and how they are weighted.
    * `descent`: set when local training is nothing but this optimiser's steps down the task's loss:
      then a faster trainer may take them in another way.
    """

    begin: Callable[[Arrays, ClientState, Batch], Any]
    step: Callable[[Any, Batch, Noise], tuple[Any, Metrics]]
    end: Callable[[Any], tuple[Sums, ClientState, Metrics]]
    draw: Callable[[np.random.Generator, Batch], Noise] = no_noise
    sums: Mapping[str, SumSpec] = field(default_factory=lambda: STANDARD_SUMS)
    descent: Optimizer | None = None
