"""FedNova: who takes more steps no longer pulls the model towards its own optimum.

Wang et al., "Tackling the objective inconsistency problem in heterogeneous federated optimization",
NeurIPS 2020: the update rule of section 4, with |a_i|_1 of section 3.1. A client's update is a sum
of its gradients with weights a_i. It sends their mean, and the server goes as far along the mean of
these as clients went on average:

    client   eta d_i = (w - w_i) / |a_i|_1
             |a_i|_1 = tau_i                                  SGD, tau_i steps
             |a_i|_1 = (tau_i - rho (1 - rho ** tau_i) / (1 - rho)) / (1 - rho)     momentum rho
    server   w <- w - tau_eff sum_i p_i eta d_i,    tau_eff = sum_i p_i |a_i|_1

with p_i the client's share of the examples. Where all |a_i|_1 are equal it is FedAvg.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from shared_models.objectives import (
    Extras,
    Ground,
    Means,
    Metrics,
    Objective,
    ServerSide,
    Sums,
)
from shared_models.objectives.local import Local, LocalTraining
from shared_models.partial import STANDARD_SUMS, ClientState, SumSpec

_SUMS = {**STANDARD_SUMS, "steps": SumSpec("number")}


def fednova(ground: Ground, momentum: float = 0.0) -> Objective:
    """Returns the objective of clients whose optimiser is SGD with this momentum."""
    training = LocalTraining(ground)

    def end(local: Local) -> tuple[Sums, ClientState, Metrics]:
        sums, state, metrics = training.end(local)
        length = length_of(local.steps, momentum)
        delta = {name: tensor / length for name, tensor in sums["delta"].items()}
        return {**sums, "delta": delta, "steps": {"value": length}}, state, metrics

    return replace(training.objective(), end=end, sums=_SUMS, server=ServerSide(absorb=_absorb))


def length_of(steps: Tensor, rho: float) -> Tensor:
    """Returns |a_i|_1 of a client that took `steps` steps with momentum `rho`."""
    tau = steps.double()  # in float32 `1 - 0.999 ** tau` would lose four digits
    length = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    return length.to(steps.dtype)


def _absorb(means: Means, extras: Extras, _: float) -> tuple[Means, Extras]:
    tau_eff = means["steps"]["value"]
    delta = {name: tensor * tau_eff for name, tensor in means["delta"].items()}
    rest = {name: arrays for name, arrays in means.items() if name != "steps"}
    return {**rest, "delta": delta}, extras
