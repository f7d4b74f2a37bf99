"""Optimisers as `(init, update)` pairs of pure functions over named arrays, one file each.

`update(gradient, state, params) -> (step, state)`; the caller adds the step: `params + step`. The
same pairs serve both sides: a client feeds its gradient, the server feeds the pseudo-gradient
`-mean(delta)` (Reddi et al., "Adaptive federated optimization", ICLR 2021, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from shared_models.arrays import Arrays

OptimizerState: TypeAlias = dict[str, Arrays]
Update: TypeAlias = Callable[[Arrays, OptimizerState, Arrays], tuple[Arrays, OptimizerState]]


@dataclass(frozen=True)
class Optimizer:
    """A rule that turns gradients into steps; its state is explicit, so it can be checkpointed.

    The state is arrays by slot and name, and `update` has no branch on their values: one step can
    be mapped over stacked clients. `plain_rate` is set when the step is `-plain_rate * gradient`
    and nothing else: then a faster trainer may write the step straight into the weights.
    """

    init: Callable[[Arrays], OptimizerState]
    update: Update
    plain_rate: float | None = None
