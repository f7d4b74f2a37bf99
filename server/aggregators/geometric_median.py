"""The geometric median, RFA.

Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning", IEEE Transactions on
Signal Processing 70, 2022, Algorithm 2 (smoothed Weiszfeld), on deltas; `alpha_i` are the examples:

    beta_i = alpha_i / max(nu, ||z - x_i||)
    z <- sum_i beta_i * x_i / sum_i beta_i

The paper leaves the first z open. Its authors' program begins at the weighted mean, which an update
of size M drags along: after R turns there is still some M * (a / (1 - a)) ** R of it in z, where a
is its share. We begin at the weighted coordinate-wise median, which nobody with less than half of
the examples drags anywhere. It takes all updates in sight, and so gives up what the paper has
besides: that a server who sees nothing but sums of them can do it. Flower has no such strategy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from server.aggregators import Aggregator
from server.aggregators.stacked import Cohort, stacked
from shared_models.arrays import Arrays
from shared_models.errors import InputError


def geometric_median(iterations: int = 3, smoothing: float = 1e-6) -> Aggregator:
    """Returns the aggregator `argmin_z sum_i examples_i * ||z - delta_i||`, nearly.

    Running statistics are a mean by the weights `beta` found on the deltas.

    Args:
        iterations: `R`, at least 1; the paper's is 3.
        smoothing: `nu`, a distance above 0 in units of the delta; the paper's is 1e-6.

    Raises:
        InputError: when an argument is out of its range.
    """
    if iterations < 1 or not smoothing > 0:
        raise InputError(
            "geometric_median needs iterations >= 1 and smoothing > 0, "
            f"got {iterations} and {smoothing}"
        )

    def rule(cohort: Cohort) -> dict[str, Arrays]:
        point = cohort.map("delta", lambda block: _weighted_median(block, cohort.examples))
        weights = _weights(cohort, point, smoothing)
        for _ in range(iterations - 1):
            weights = _weights(cohort, cohort.mean("delta", weights), smoothing)
        return cohort.means(weights)

    return stacked(rule)


def _weights(cohort: Cohort, point: Arrays, smoothing: float) -> Tensor:
    """Returns `beta`, (k,)."""
    squares = torch.zeros_like(cohort.examples)
    for key, span, block in cohort.blocks("delta"):
        squares += (block - point[key].view(-1)[span]).square().sum(1)
    return cohort.examples / squares.sqrt().clamp(min=smoothing)


def _weighted_median(block: Tensor, weights: Tensor) -> Tensor:
    """Returns each column's value with half of the weight on either side; of two, their mean."""
    values, order = block.sort(0)
    mass, half = weights[order].cumsum(0), weights.sum() / 2
    lower, upper = (mass < half).sum(0), (mass <= half).sum(0)
    return values.gather(0, torch.stack([lower, upper])).mean(0)
