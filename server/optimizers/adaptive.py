"""What FedAdagrad, FedAdam and FedYogi share: all but the line that moves `v`.

Reddi et al., "Adaptive federated optimization", ICLR 2021, Algorithm 2, with `delta` the clients'
mean update and `v = tau ** 2` to begin with (the paper asks for at least that much):

    m = beta1 * m + (1 - beta1) * delta
    v = next_v(v, delta ** 2)
    params = params + learning_rate * m / (sqrt(v) + tau)

The gradient that comes in is `-delta`: `m` is the paper's with the other sign, `v` the paper's own.
There is no bias correction, and `delta` is weighted as the aggregator weighs it.

Flower's strategies of these names start from `v = 0`: where `delta` is small, the first steps are
larger than the paper's, up to twice. They also step every array there is, BatchNorm's statistics
and counters included; here only trainable arrays come this far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from shared_models.arrays import Arrays, add, scaled, zeros_like
from shared_models.optimizers import Optimizer, OptimizerState

NextV: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def adaptive(learning_rate: float, beta1: float, tau: float, next_v: NextV) -> Optimizer:
    """Returns `step = -learning_rate * m / (sqrt(v) + tau)`; `next_v` gets `v` and `delta ** 2`."""

    def init(params: Arrays) -> OptimizerState:
        v = {name: torch.full_like(tensor, tau**2) for name, tensor in params.items()}
        return {"m": zeros_like(params), "v": v}

    def update(gradient: Arrays, state: OptimizerState, _: Arrays) -> tuple[Arrays, OptimizerState]:
        m = add(scaled(state["m"], beta1), gradient, 1 - beta1)
        v = {name: next_v(old, gradient[name].square()) for name, old in state["v"].items()}
        step = {name: -learning_rate * m[name] / (v[name].sqrt() + tau) for name in m}
        return step, {"m": m, "v": v}

    return Optimizer(init, update)
