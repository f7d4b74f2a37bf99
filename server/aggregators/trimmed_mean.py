"""The coordinate-wise trimmed mean.

Yin et al., "Byzantine-robust distributed learning: towards optimal statistical rates", ICML 2018,
Definition 2 and Algorithm 1, option II, here on deltas, where the paper has gradients:

    g_j = mean of x_ij over i, without the floor(beta * k) smallest and as many largest

The paper drops the fraction beta and does not say what becomes of a part of a client; like scipy
and Flower's FedTrimmedAvg we round down. Of so few that nobody is left out it would be the plain
mean without a word: such a round is below its quorum. Flower works on whole models in their dtype,
and rounds the product as floats have it: 0.29 of 100 clients are 28 there, 29 here.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from server.aggregators import Aggregator
from server.aggregators.stacked import check_fraction, coordinate_wise, middle
from shared_models.shares import trim_fault, trimmed_of


def trimmed_mean(fraction: float) -> Aggregator:
    """Returns the aggregator; all clients count alike, however many examples they have.

    Args:
        fraction: `beta`, the share of values dropped at each end, in [0, 1/2).

    Raises:
        InputError: when `fraction` is not in there.
    """
    check_fraction("trim_fraction", fraction)

    def rule(block: Tensor) -> Tensor:
        return middle(block, trimmed_of(len(block), fraction))

    return replace(coordinate_wise(rule), fault=lambda count: trim_fault(count, fraction))
