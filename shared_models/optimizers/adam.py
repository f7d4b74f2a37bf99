"""Adam: steps of the size of the learning rate, from two moving means of the gradient.

Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, Algorithm 1:

    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient ** 2
    step = -learning_rate * m / (1 - beta1 ** t) / (sqrt(v / (1 - beta2 ** t)) + epsilon)

`server/optimizers/adam.py` is another rule, without the correction by `t`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shared_models.arrays import Arrays, add, scaled, zeros_like
from shared_models.optimizers import Optimizer, OptimizerState


def adam(
    learning_rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> Optimizer:
    """Returns Adam: `step = -learning_rate * mean / (sqrt(square) + epsilon)`, bias corrected."""

    def init(params: Arrays) -> OptimizerState:
        return {
            "mean": zeros_like(params),
            "square": zeros_like(params),
            "steps": {"count": next(iter(params.values())).new_zeros(())},
        }

    def update(gradient: Arrays, state: OptimizerState, _: Arrays) -> tuple[Arrays, OptimizerState]:
        count = state["steps"]["count"] + 1
        squared = {name: tensor.square() for name, tensor in gradient.items()}
        mean = add(scaled(state["mean"], beta1), gradient, 1 - beta1)
        square = add(scaled(state["square"], beta2), squared, 1 - beta2)
        m, v = _corrected(mean, beta1, count), _corrected(square, beta2, count)
        step = {name: -learning_rate * m[name] / (v[name].sqrt() + epsilon) for name in m}
        return step, {"mean": mean, "square": square, "steps": {"count": count}}

    return Optimizer(init, update)


def _corrected(mean: Arrays, beta: float, count: Tensor) -> Arrays:
    """Returns `mean / (1 - beta ** count)`: the mean without the zero that it began with."""
    # In float32 `1 - 0.999` has lost four digits; `expm1` keeps them.
    seen = -torch.expm1(count * (math.log(beta) if beta > 0 else -math.inf))
    return {name: tensor / seen for name, tensor in mean.items()}
