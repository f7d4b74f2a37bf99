"""FedProx: local training that is held near the server's weights.

Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, equation 2: a client
minimises

    F(w) + mu / 2 * |w - w_server| ** 2,    so that its gradient is    grad F(w) + mu (w - w_server)

Personal arrays have no counterpart at the server: nothing holds them. The server does what it does
for FedAvg (Algorithm 2, with means over examples in place of sampling by them).
"""

from __future__ import annotations

from dataclasses import replace

from shared_models.arrays import Arrays, add, subtract
from shared_models.objectives import Batch, Ground, Metrics, Noise, Objective
from shared_models.objectives.local import Local, LocalTraining


def fedprox(ground: Ground, mu: float) -> Objective:
    """Returns the objective with a proximal term: `gradient + mu * (w - w_server)`."""
    training = LocalTraining(ground)

    def step(local: Local, batch: Batch, noise: Noise) -> tuple[Local, Metrics]:
        def held(gradient: Arrays, params: Arrays) -> Arrays:
            way = subtract(training.shared(params), local.start)
            return {**gradient, **add(training.shared(gradient), way, mu)}

        return training.step(local, batch, noise, held)

    return replace(training.objective(), step=step)
