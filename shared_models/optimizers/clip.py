"""Gradient clipping by global norm: `g * min(1, bound / |g|)`, then another optimiser.

Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
Algorithm 1.
"""

from __future__ import annotations

import torch

from shared_models.arrays import Arrays, global_norm
from shared_models.optimizers import Optimizer, OptimizerState


def clip_by_norm(bound: float, inner: Optimizer) -> Optimizer:
    """Scales the gradient down to Euclidean norm `bound` over all arrays, then applies `inner`."""

    def update(
        gradient: Arrays, state: OptimizerState, params: Arrays
    ) -> tuple[Arrays, OptimizerState]:
        # A tensor factor, not a branch: the same step can be mapped over clients.
        factor = torch.clamp(bound / (global_norm(gradient) + 1e-12), max=1.0)
        clipped = {name: tensor * factor for name, tensor in gradient.items()}
        return inner.update(clipped, state, params)

    return Optimizer(inner.init, update)
