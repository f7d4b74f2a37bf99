"""A round while its partials come in: each is checked, then folded, in block order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.aggregators import Aggregator
from shared_models.arrays import Arrays, Role
from shared_models.checks import check_arrays, check_metrics, check_norm
from shared_models.errors import UpdateError, one_line
from shared_models.messages import BlockFailure, BlockRequest, Reply
from shared_models.partial import Partial, Row, SumSpec, bad_rows


@dataclass(frozen=True)
class Fold:
    """The aggregate so far, and what became of each client."""

    aggregate: Any
    rows: tuple[Row, ...] = ()
    bytes_up: int = 0


@dataclass(frozen=True)
class Expected:
    """What a fit partial looks like; `examples` are the counts that the clients' hello told."""

    params: Arrays
    roles: Mapping[str, Role]
    sums: Mapping[str, SumSpec]
    examples: Mapping[int, int]
    max_update_norm: float


def fold_reply(
    aggregator: Aggregator, fold: Fold, request: BlockRequest, reply: Reply, expected: Expected
) -> Fold:
    """Returns the fold with one block's reply in it; a bad one leaves rows with the reason only."""
    if isinstance(reply, BlockFailure):
        reason = one_line(reply.reason)
        return replace(fold, rows=fold.rows + bad_rows(request.client_ids, "failed", reason))
    size = fold.bytes_up + reply.size_bytes
    try:
        check_partial(reply, request, expected)
    except UpdateError as error:
        refused = bad_rows(request.client_ids, "refused", one_line(str(error)))
        return Fold(fold.aggregate, fold.rows + refused, size)
    rows = fold.rows + tuple(replace(row, reason=one_line(row.reason)) for row in reply.rows)
    if not any(row.status == "ok" for row in reply.rows):
        return Fold(fold.aggregate, rows, size)
    return Fold(aggregator.add(fold.aggregate, reply), rows, size)


def check_partial(partial: Partial, request: BlockRequest, expected: Expected) -> None:
    """Raises `UpdateError` unless the partial is about the block's clients and fit to be added."""
    told = tuple(row.client_id for row in partial.rows)
    if told != request.client_ids:
        raise UpdateError(f"partial is about clients {told}, asked were {request.client_ids}")
    good = [row for row in partial.rows if row.status == "ok"]
    for row in good:
        _check_row(row, expected.examples[row.client_id])
    arrays = {name: part.arrays for name, part in partial.sums.items()}
    check_arrays(arrays, expected.sums, expected.params, expected.roles)
    for name, spec in expected.sums.items():
        weight = sum(spec.weigh(row.examples) for row in good)
        if partial.sums[name].weight != weight:
            raise UpdateError(f"{name}: weight is {partial.sums[name].weight}, expected {weight}")
    if good:
        delta = partial.sums["delta"]
        check_norm(delta.arrays, expected.max_update_norm, delta.weight)


def _check_row(row: Row, examples: int) -> None:
    if row.examples != examples or row.examples < 1:
        raise UpdateError(
            f"client {row.client_id} claims {row.examples} examples, its hello said {examples}"
        )
    check_metrics(row.metrics)
