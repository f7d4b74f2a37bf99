"""Krum and Multi-Krum: the updates that are closest to their neighbours.

Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient descent", NeurIPS
2017, section 4, here on deltas, where the paper has gradients. Of k updates up to f are malicious:

    s(i) = sum of ||x_i - x_j||^2 over the k - f - 2 updates x_j, j != i, that are closest to x_i

Krum returns the update of the lowest score, Multi-Krum the plain mean of the m lowest. It takes
2f + 2 < k. Of equal scores the lowest client id wins.

`f = ceil(byzantine_fraction * k)`: rounded down, a tenth of eight clients would be nobody, and the
defence would be off without a word.

Distances are sums of squared differences in float64. Flower's Krum and MultiKrum take them as
`||x||^2 + ||y||^2 - 2 x.y` of whole models in their dtype: what is left after the cancellation may
be noise, or negative, and then a model may be its own neighbour. Theirs also compare running
statistics and counters, go on where 2f + 2 >= k, and weigh the mean by examples.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pdist

from server.aggregators import Aggregator
from server.aggregators.stacked import Cohort, check_fraction, stacked
from shared_models.arrays import Arrays
from shared_models.errors import InputError, RoundError
from shared_models.shares import krum_fault, malicious_of


def krum(byzantine_fraction: float) -> Aggregator:
    """Returns the aggregator that takes the update of the lowest score; examples do not count.

    Args:
        byzantine_fraction: the share of clients that may be malicious, in [0, 1/2).

    Raises:
        InputError: when the fraction is not in there.
        RoundError: at `finish`, when there are fewer than 2f + 3 updates.
    """
    return multi_krum(byzantine_fraction, 1)


def multi_krum(byzantine_fraction: float, keep: int | None = None) -> Aggregator:
    """Returns the aggregator that averages the m best updates; examples do not count.

    Running statistics are the mean of the same clients'.

    Args:
        byzantine_fraction: the share of clients that may be malicious, in [0, 1/2).
        keep: `m`, at least 1; `k - f` when it is None or larger, as the rest may be malicious.

    Raises:
        InputError: when an argument is out of its range.
        RoundError: at `finish`, when there are fewer than 2f + 3 updates.
    """
    check_fraction("byzantine_fraction", byzantine_fraction)
    if keep is not None and keep < 1:
        raise InputError(f"keep must be at least 1, got {keep}")

    def rule(cohort: Cohort) -> dict[str, Arrays]:
        malicious = _tolerated(len(cohort), byzantine_fraction)
        honest = len(cohort) - malicious
        scores = _scores(_squared_distances(cohort), honest - 2)
        best = scores.argsort(stable=True)[: min(keep or honest, honest)]
        chosen = torch.zeros_like(cohort.examples)
        chosen[best] = 1.0
        return cohort.means(chosen)

    return replace(stacked(rule), fault=lambda count: krum_fault(count, byzantine_fraction))


def _tolerated(clients: int, fraction: float) -> int:
    if fault := krum_fault(clients, fraction):
        raise RoundError(f"{fault}; raise clients_per_round, or lower byzantine_fraction")
    return malicious_of(clients, fraction)


def _squared_distances(cohort: Cohort) -> Tensor:
    """Returns all of them, (k, k)."""
    clients = len(cohort)
    pairs = sum(pdist(block).square() for _, _, block in cohort.blocks("delta"))
    squares = torch.zeros(clients, clients, dtype=torch.float64, device=cohort.examples.device)
    above, beside = torch.triu_indices(clients, clients, 1, device=squares.device)
    squares[above, beside] = pairs
    return squares + squares.T


def _scores(squares: Tensor, neighbours: int) -> Tensor:
    """Returns the sum of each row's smallest values, (k,); nobody is their own neighbour."""
    others = squares.clone().fill_diagonal_(math.inf)
    return others.sort(1).values[:, :neighbours].sum(1)
