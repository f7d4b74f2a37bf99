"""FedYogi: Reddi et al., "Adaptive federated optimization", ICLR 2021, Algorithm 2.

    v = v - (1 - beta2) * delta ** 2 * sign(v - delta ** 2)

The rest, and what Flower does otherwise, is in `adaptive.py`.
"""

from __future__ import annotations

from torch import Tensor

from server.optimizers.adaptive import adaptive
from shared_models.optimizers import Optimizer


def yogi(
    learning_rate: float, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Optimizer:
    """Returns FedYogi: `v = v - (1 - beta2) * delta ** 2 * sign(v - delta ** 2)`."""

    def next_v(v: Tensor, squared: Tensor) -> Tensor:
        return v - (1 - beta2) * squared * (v - squared).sign()

    return adaptive(learning_rate, beta1, tau, next_v)
