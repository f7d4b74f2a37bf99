"""Gradient descent on batches: `step = -learning_rate * gradient`.

Robbins, Monro, "A stochastic approximation method", Annals of Mathematical Statistics, 1951. On the
server, with rate 1, it is FedAvg: McMahan et al., "Communication-efficient learning of deep
networks from decentralized data", AISTATS 2017, Algorithm 1.
"""

from __future__ import annotations

from shared_models.arrays import Arrays, scaled
from shared_models.optimizers import Optimizer, OptimizerState


def sgd(learning_rate: float) -> Optimizer:
    """Returns plain gradient descent: `step = -learning_rate * gradient`."""

    def init(_: Arrays) -> OptimizerState:
        return {}

    def update(gradient: Arrays, state: OptimizerState, _: Arrays) -> tuple[Arrays, OptimizerState]:
        return scaled(gradient, -learning_rate), state

    return Optimizer(init, update, plain_rate=learning_rate)
