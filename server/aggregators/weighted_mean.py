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
from shared_models.arrays import Arrays, cast, scaled
from shared_models.partial import Partial, Sum


def weighted_mean() -> Aggregator:
    """Returns the aggregator; means are float64, a sum without weight is left out."""
    return Aggregator(dict, _add, _finish)


def _add(total: Mapping[str, Sum], partial: Partial) -> Mapping[str, Sum]:
    return {**total, **{name: _merge(total.get(name), part) for name, part in partial.sums.items()}}


def _merge(total: Sum | None, part: Sum) -> Sum:
    if total is None:
        return Sum(cast(part.arrays, torch.float64), part.weight)
    # One pass: float64 + float32 is float64.
    arrays = {name: tensor + part.arrays[name] for name, tensor in total.arrays.items()}
    return Sum(arrays, total.weight + part.weight)


def _finish(total: Mapping[str, Sum]) -> Mapping[str, Arrays]:
    return {name: scaled(s.arrays, 1 / s.weight) for name, s in total.items() if s.weight > 0}
