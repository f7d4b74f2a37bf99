"""The weighted mean of FedAvg: sum of weighted sums over sum of weights.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, Algorithm 1: `w <- sum_k n_k / n * w_k`, here on deltas. Blocks are summed in float32
in client order, partials in float64 in block order, so that the result does not depend on who
trained what.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from server.aggregators import Aggregator
from shared_models.arrays import Arrays, scaled
from shared_models.partial import Partial, Sum


def weighted_mean() -> Aggregator:
    """Returns the aggregator; means are float64, a sum without weight is left out."""
    return Aggregator(dict, _add, _finish)


def _add(total: Mapping[str, Sum], partial: Partial) -> Mapping[str, Sum]:
    return {**total, **{name: _merge(total.get(name), part) for name, part in partial.sums.items()}}


def _merge(total: Sum | None, part: Sum) -> Sum:
    if total is None:
        own = {name: t.to(torch.float64, copy=True) for name, t in part.arrays.items()}
        return Sum(own, part.weight)
    for name, tensor in total.arrays.items():
        # In place: to ask for memory anew costs more than the sum.
        tensor.add_(part.arrays[name])
    return Sum(total.arrays, total.weight + part.weight)


def _finish(total: Mapping[str, Sum]) -> Mapping[str, Arrays]:
    return {name: scaled(s.arrays, 1 / s.weight) for name, s in total.items() if s.weight > 0}
