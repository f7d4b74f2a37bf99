"""FedAdam: Reddi et al., "Adaptive federated optimization", ICLR 2021, Algorithm 2.

    v = beta2 * v + (1 - beta2) * delta ** 2

The rest, and what Flower does otherwise, is in `adaptive.py`. Flower's FedAdam also multiplies the
learning rate in round `t` by `sqrt(1 - beta2 ** (t + 1)) / (1 - beta1 ** (t + 1))`. The paper has
no such factor, and Kingma and Ba have `t` where Flower has `t + 1`.
"""

from __future__ import annotations

from torch import Tensor

from server.optimizers.adaptive import adaptive
from shared_models.optimizers import Optimizer


def adam(
    learning_rate: float, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Optimizer:
    """Returns FedAdam: `v = beta2 * v + (1 - beta2) * delta ** 2`."""

    def next_v(v: Tensor, squared: Tensor) -> Tensor:
        return beta2 * v + (1 - beta2) * squared

    return adaptive(learning_rate, beta1, tau, next_v)
