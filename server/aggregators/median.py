"""The coordinate-wise median.

Yin et al., "Byzantine-robust distributed learning: towards optimal statistical rates", ICML 2018,
Definition 1 and Algorithm 1, option I, here on deltas, where the paper has gradients:

    g_j = med{x_ij : i = 1..k}

With an even k it is the mean of the two middle values, as in `np.median`; `torch.median` takes the
lower one. Flower's FedMedian is the same rule on whole models, in their dtype.
"""

from __future__ import annotations

from torch import Tensor

from server.aggregators import Aggregator
from server.aggregators.stacked import coordinate_wise, middle


def median() -> Aggregator:
    """Returns the aggregator; all clients count alike, however many examples they have."""
    return coordinate_wise(_median)


def _median(block: Tensor) -> Tensor:
    return middle(block, (len(block) - 1) // 2)
