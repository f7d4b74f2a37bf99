"""Optimisers as `(init, update)` pairs of pure functions over named arrays.

`update(gradient, state) -> (step, state)`; the caller adds the step: `params + step`. The same
pairs serve both sides: a client feeds its gradient, the server feeds the pseudo-gradient `-delta`
(Reddi et al., "Adaptive federated optimization", ICLR 2021, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from shared_models.arrays import Arrays, add, global_norm, scaled

OptimizerState: TypeAlias = dict[str, Arrays]


@dataclass(frozen=True)
class Optimizer:
    """A rule that turns gradients into steps; its state is explicit, so it can be checkpointed.

    `plain_rate` is set when the step is `-plain_rate * gradient` and nothing else: then a faster
    trainer may write the step straight into the weights.
    """

    init: Callable[[Arrays], OptimizerState]
    update: Callable[[Arrays, OptimizerState], tuple[Arrays, OptimizerState]]
    plain_rate: float | None = None


def _stateless(_: Arrays) -> OptimizerState:
    return {}


def sgd(learning_rate: float) -> Optimizer:
    """Plain gradient descent: `step = -learning_rate * gradient`."""

    def update(gradient: Arrays, state: OptimizerState) -> tuple[Arrays, OptimizerState]:
        return scaled(gradient, -learning_rate), state

    return Optimizer(_stateless, update, plain_rate=learning_rate)


def momentum(learning_rate: float, beta: float) -> Optimizer:
    """Heavy-ball momentum: `v = beta * v + gradient; step = -learning_rate * v`.

    On the server this is FedAvgM: Hsu, Qi, Brown, "Measuring the effects of non-identical data
    distribution for federated visual classification", 2019, section 4.2.
    """

    def init(params: Arrays) -> OptimizerState:
        return {"velocity": {name: torch.zeros_like(tensor) for name, tensor in params.items()}}

    def update(gradient: Arrays, state: OptimizerState) -> tuple[Arrays, OptimizerState]:
        velocity = add(gradient, state["velocity"], beta)
        return scaled(velocity, -learning_rate), {"velocity": velocity}

    return Optimizer(init, update)


def clip_by_norm(bound: float, inner: Optimizer) -> Optimizer:
    """Scales the gradient down to Euclidean norm `bound` over all arrays, then applies `inner`."""

    def update(gradient: Arrays, state: OptimizerState) -> tuple[Arrays, OptimizerState]:
        # A tensor factor, not a branch: the same step can be mapped over clients.
        factor = torch.clamp(bound / (global_norm(gradient) + 1e-12), max=1.0)
        clipped = {name: tensor * factor for name, tensor in gradient.items()}
        return inner.update(clipped, state)

    return Optimizer(inner.init, update)
