"""Variational autoencoders: the bound on the likelihood, with the noise drawn outside of the step.

Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, equation 10, with one draw of the
code a step (L = 1), and its KL divergence in closed form, appendix B:

    loss = -log p(x | z) - 1/2 sum (1 + log s^2 - m^2 - s^2),    z = m + s * eps,  eps ~ N(0, 1)

summed over pixels and code, the mean over the batch. We divide by the number of pixels, so that
learning rates are what they are elsewhere. A pixel from 0 to 1 is taken for the chance that it is
white.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from shared_models.objectives import Ground, Objective
from shared_models.objectives.local import LocalTraining


def variational(ground: Ground) -> Objective:
    """Returns the objective of a model that tells in training what the bound is made of."""
    task = replace(ground.task, loss=negative_bound)  # type: ignore[arg-type]  # of its model alone
    return LocalTraining(replace(ground, task=task)).objective()


def negative_bound(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    """Returns the mean over the batch, in nats a pixel."""
    logits, mean, spread = outputs
    missed = binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    divergence = -0.5 * (1 + spread - mean.square() - spread.exp()).sum()
    return (missed + divergence) / targets.numel()
