"""FedAdagrad: Reddi et al., "Adaptive federated optimization", ICLR 2021, Algorithm 2.

    v = v + delta ** 2

The rest, and what Flower does otherwise, is in `adaptive.py`. Flower's FedAdagrad has no `beta1`:
it is 0, which is the default here.
"""

from __future__ import annotations

from torch import Tensor

from server.optimizers.adaptive import adaptive
from shared_models.optimizers import Optimizer


def adagrad(learning_rate: float, beta1: float = 0.0, tau: float = 1e-3) -> Optimizer:
    """Returns FedAdagrad: `v = v + delta ** 2`."""

    def next_v(v: Tensor, squared: Tensor) -> Tensor:
        return v + squared

    return adaptive(learning_rate, beta1, tau, next_v)
