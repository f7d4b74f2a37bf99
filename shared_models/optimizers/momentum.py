"""Heavy-ball momentum: `v = beta * v + gradient; step = -learning_rate * v`.

Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. On the server this
is FedAvgM: Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution for federated
visual classification", 2019, section 4.2.
"""

from __future__ import annotations

from shared_models.arrays import Arrays, add, scaled, zeros_like
from shared_models.optimizers import Optimizer, OptimizerState


def momentum(learning_rate: float, beta: float) -> Optimizer:
    """Returns heavy ball: `v = beta * v + gradient; step = -learning_rate * v`."""

    def init(params: Arrays) -> OptimizerState:
        return {"velocity": zeros_like(params)}

    def update(gradient: Arrays, state: OptimizerState, _: Arrays) -> tuple[Arrays, OptimizerState]:
        velocity = add(gradient, state["velocity"], beta)
        return scaled(velocity, -learning_rate), {"velocity": velocity}

    return Optimizer(init, update)
