"""Any aggregator, on a device: updates are brought there as they come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from server.aggregators import Aggregator
from server.device import placed
from shared_models.partial import Partial, Sum


def placed_on(device: torch.device, aggregator: Aggregator) -> Aggregator:
    """Returns the aggregator that adds up, and finishes, on a device; on the host it is the same.

    A rule that keeps all updates keeps them there: as much memory as clients times the model.
    """

    def add(total: Any, partial: Partial) -> Any:
        sums = {n: Sum(placed(own.arrays, device), own.weight) for n, own in partial.sums.items()}
        singles = {name: placed(own, device) for name, own in partial.singles.items()}
        return aggregator.add(total, replace(partial, sums=sums, singles=singles))

    return replace(aggregator, add=add)
