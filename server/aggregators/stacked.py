"""All updates of a round side by side, for rules that cannot fold: memory O(clients x model).

The partials' own arrays are what is kept. They are looked at in blocks of coordinates, so that a
rule needs no second copy of them. Clients are in the order of their ids: who trained whom, and who
answered first, changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from server.aggregators import Aggregator
from shared_models.arrays import Arrays
from shared_models.errors import InputError
from shared_models.partial import Partial, Row

_VALUES = 2**18  # in a block: 2 MB; larger ones sort no faster


@dataclass(frozen=True)
class Kept:
    """What stays of a partial: the rows that are `ok`, and their updates."""

    rows: tuple[Row, ...]
    singles: Mapping[str, Arrays]


@dataclass(frozen=True)
class Cohort:
    """The updates of k clients; `examples` are theirs, of shape (k,), in float64."""

    singles: tuple[Mapping[str, Arrays], ...]
    order: Tensor
    examples: Tensor

    def __len__(self) -> int:
        return len(self.examples)

    def blocks(self, name: str) -> Iterator[tuple[str, slice, Tensor]]:
        """Yields every array of a sum in blocks: its name, which coordinates, (k, m) in float64."""
        width = max(1, _VALUES // len(self))
        for key in self.singles[0][name]:
            parts = [s[name][key].reshape(len(s[name][key]), -1) for s in self.singles]
            size = parts[0].shape[1]
            for start in range(0, size, width):
                span = slice(start, min(start + width, size))
                block = torch.cat([part[:, span] for part in parts])
                yield key, span, block[self.order].to(torch.float64)

    def map(self, name: str, rule: Callable[[Tensor], Tensor]) -> Arrays:
        """Returns a sum's arrays, each block (k, m) made (m,) by `rule`."""
        result = {
            key: torch.empty(own.shape[1:], dtype=torch.float64, device=own.device)
            for key, own in self.singles[0][name].items()
        }
        for key, span, block in self.blocks(name):
            result[key].view(-1)[span] = rule(block)
        return result

    def mean(self, name: str, weights: Tensor) -> Arrays:
        """Returns `sum_i weights_i * update_i / sum_i weights_i`; `weights` are of shape (k,)."""
        column, total = weights[:, None], weights.sum()
        return self.map(name, lambda block: (block * column).sum(0) / total)

    def means(self, weights: Tensor) -> dict[str, Arrays]:
        """Returns the weighted mean of every sum."""
        return {name: self.mean(name, weights) for name in self.singles[0]}


def stacked(rule: Callable[[Cohort], Mapping[str, Arrays]]) -> Aggregator:
    """Returns the aggregator that keeps all updates, then applies `rule`; without any it is {}."""

    def finish(kept: tuple[Kept, ...]) -> Mapping[str, Arrays]:
        return rule(_cohort(kept)) if kept else {}

    return Aggregator(tuple, _add, finish, needs_singles=True)


def coordinate_wise(rule: Callable[[Tensor], Tensor]) -> Aggregator:
    """Returns the aggregator that makes (m,) of every block (k, m) of every sum, by `rule`."""
    return stacked(lambda cohort: {name: cohort.map(name, rule) for name in cohort.singles[0]})


def middle(block: Tensor, drop: int) -> Tensor:
    """Returns each column's mean without its `drop` smallest and `drop` largest values."""
    return block.sort(0).values[drop : len(block) - drop].mean(0)


def check_fraction(name: str, fraction: float) -> None:
    """Raises `InputError` unless the fraction leaves a majority: 0 <= fraction < 1/2."""
    if not 0.0 <= fraction < 0.5:
        raise InputError(f"{name} must be at least 0 and less than 0.5, got {fraction}")


def _add(kept: tuple[Kept, ...], partial: Partial) -> tuple[Kept, ...]:
    rows = tuple(row for row in partial.rows if row.status == "ok")
    return (*kept, Kept(rows, partial.singles)) if rows else kept


def _cohort(kept: tuple[Kept, ...]) -> Cohort:
    rows = [row for part in kept for row in part.rows]
    order = sorted(range(len(rows)), key=lambda position: rows[position].client_id)
    device = next(iter(kept[0].singles["delta"].values())).device
    examples = [float(rows[position].examples) for position in order]
    return Cohort(
        tuple(part.singles for part in kept),
        torch.tensor(order, device=device),
        torch.tensor(examples, dtype=torch.float64, device=device),
    )
