"""A round while its partials come in: each is checked, then folded, in block order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.aggregators import Aggregator
from shared_models.arrays import Arrays, Role, scaled
from shared_models.checks import SUM_ROLES, check_update
from shared_models.errors import UpdateError
from shared_models.messages import BlockFailure, BlockRequest, Reply
from shared_models.partial import Partial, Row, failed_rows


@dataclass(frozen=True)
class Fold:
    """The aggregate so far, and what became of each client."""

    aggregate: Any
    rows: tuple[Row, ...] = ()
    bytes_up: int = 0


@dataclass(frozen=True)
class Expected:
    """What a fit partial looks like."""

    params: Arrays
    roles: Mapping[str, Role]
    max_update_norm: float


def fold_reply(
    aggregator: Aggregator, fold: Fold, request: BlockRequest, reply: Reply, expected: Expected
) -> Fold:
    """Returns the fold with one block's reply in it; a bad one leaves rows with the reason only."""
    if isinstance(reply, BlockFailure):
        return replace(fold, rows=fold.rows + failed_rows(request.client_ids, reply.reason))
    rows, size = reply.rows, fold.bytes_up + reply.size_bytes
    try:
        check_partial(reply, request, expected)
    except UpdateError as error:
        refused = tuple(Row(k, 0, {}, "refused", str(error)) for k in request.client_ids)
        return Fold(fold.aggregate, fold.rows + refused, size)
    if not any(row.status == "ok" for row in rows):
        return Fold(fold.aggregate, fold.rows + rows, size)
    return Fold(aggregator.add(fold.aggregate, reply), fold.rows + rows, size)


def check_partial(partial: Partial, request: BlockRequest, expected: Expected) -> None:
    """Raises `UpdateError` unless the partial is about the block's clients and fit to be added."""
    told = tuple(row.client_id for row in partial.rows)
    if told != request.client_ids:
        raise UpdateError(f"partial is about clients {told}, asked were {request.client_ids}")
    if set(partial.sums) != set(SUM_ROLES):
        raise UpdateError(f"sums are {sorted(partial.sums)}, expected {sorted(SUM_ROLES)}")
    if any(row.examples < 0 for row in partial.rows):
        raise UpdateError("a client's number of examples is negative")
    weight = sum(row.examples for row in partial.rows if row.status == "ok")
    for name, part in partial.sums.items():
        if part.weight != weight:
            raise UpdateError(
                f"{name}: weight is {part.weight}, its clients have {weight} examples"
            )
    if weight == 0:
        return
    means = {name: scaled(part.arrays, 1 / weight) for name, part in partial.sums.items()}
    check_update(means, weight, expected.params, expected.roles, expected.max_update_norm)
