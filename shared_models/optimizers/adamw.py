"""AdamW: Adam, and weights that decay by themselves instead of through the gradient.

Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019, Algorithm 2:

    step = adam's step - learning_rate * weight_decay * params

The paper's `lambda` is `learning_rate * weight_decay` here, as in torch; its schedule multiplier
`eta_t` scales both terms, as `scaled_by` does.
"""

from __future__ import annotations

from shared_models.arrays import Arrays, add
from shared_models.optimizers import Optimizer, OptimizerState
from shared_models.optimizers.adam import adam


def adamw(
    learning_rate: float,
    weight_decay: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> Optimizer:
    """Returns AdamW: Adam's step and `-learning_rate * weight_decay * params`."""
    inner = adam(learning_rate, beta1, beta2, epsilon)

    def update(
        gradient: Arrays, state: OptimizerState, params: Arrays
    ) -> tuple[Arrays, OptimizerState]:
        step, state = inner.update(gradient, state, params)
        return add(step, params, -learning_rate * weight_decay), state

    return Optimizer(inner.init, update)
