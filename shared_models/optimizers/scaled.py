"""Another optimiser's step times a factor: how a schedule acts on any optimiser.

Every optimiser here steps in proportion to its learning rate and keeps that rate out of its state,
so a factor on the step is a factor on the rate, and may change from round to round.
"""

from __future__ import annotations

from shared_models.arrays import Arrays, scaled
from shared_models.optimizers import Optimizer, OptimizerState


def scaled_by(factor: float, inner: Optimizer) -> Optimizer:
    """Returns the optimiser whose step is `factor * inner's step`, with the state of `inner`."""

    def update(
        gradient: Arrays, state: OptimizerState, params: Arrays
    ) -> tuple[Arrays, OptimizerState]:
        step, state = inner.update(gradient, state, params)
        return scaled(step, factor), state

    plain = None if inner.plain_rate is None else factor * inner.plain_rate
    return Optimizer(inner.init, update, plain)
