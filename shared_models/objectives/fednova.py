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

tau_eff multiplies everybody's update, so nobody is taken at their word: |a_i|_1 follows from what
the server knows, and `max_norm` bounds w - w_i, not the mean gradient that is sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from shared_models.checks import check_norm
from shared_models.errors import UpdateError
from shared_models.objectives import (
    Extras,
    Ground,
    Means,
    Metrics,
    Objective,
    ServerSide,
    Sums,
    Terms,
)
from shared_models.objectives.local import Local, LocalTraining
from shared_models.partial import STANDARD_SUMS, ClientState, Sum, SumSpec

_SUMS = {**STANDARD_SUMS, "steps": SumSpec("number")}
_ROUNDING = 1e-4  # of sums of lengths in float32


def fednova(ground: Ground, momentum: float = 0.0) -> Objective:
    """Returns the objective of clients whose optimiser is SGD with this momentum."""
    training = LocalTraining(ground)

    def end(local: Local) -> tuple[Sums, ClientState, Metrics]:
        sums, state, metrics = training.end(local)
        length = length_of(local.steps, momentum)
        delta = {name: tensor / length for name, tensor in sums["delta"].items()}
        return {**sums, "delta": delta, "steps": {"value": length}}, state, metrics

    def check(sums: Mapping[str, Sum], examples: Sequence[int], terms: Terms) -> None:
        steps = torch.tensor([terms.steps(own) for own in examples], dtype=torch.float64)
        lengths, p = length_of(steps, momentum), torch.tensor(examples).double() / sum(examples)
        claimed = float(sums["steps"].arrays["value"]) / sums["steps"].weight
        tau_eff = float((p * lengths).sum())
        if not math.isclose(claimed, tau_eff, rel_tol=_ROUNDING):
            raise UpdateError(f"steps: the mean length is {claimed:g}, expected {tau_eff:g}")
        bound = terms.max_norm * float((p / lengths).sum())
        check_norm(sums["delta"].arrays, bound, sums["delta"].weight)

    return replace(
        training.objective(),
        end=end,
        sums=_SUMS,
        server=ServerSide(absorb=_absorb),
        check=check,
    )


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
