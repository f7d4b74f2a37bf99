"""A round while its partials come in: each is checked, then folded, in block order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from server.aggregators import Aggregator
from shared_models.arrays import Arrays, Role
from shared_models.checks import check_arrays, check_metrics, check_norm, check_state
from shared_models.errors import UpdateError, one_line
from shared_models.messages import BlockFailure, BlockRequest, Reply
from shared_models.partial import ClientState, Partial, Row, Sum, SumSpec, bad_rows


@dataclass(frozen=True)
class Fold:
    """The aggregate so far, and what became of each client."""

    aggregate: Any
    rows: tuple[Row, ...] = ()
    bytes_down: int = 0
    bytes_up: int = 0
    repeatable: bool = True

    @property
    def usable(self) -> int:
        """How many updates are in it."""
        return sum(row.status == "ok" for row in self.rows)


def _anything(_: Mapping[str, Sum], __: Sequence[int]) -> None:
    pass


@dataclass(frozen=True)
class Expected:
    """What a fit partial looks like; `examples` are the counts that the clients' hello told.

    With `singles` it holds every update by itself. `state` is what one client keeps. `check` is the
    objective's own, of sums and their clients' examples.
    """

    params: Arrays
    roles: Mapping[str, Role]
    sums: Mapping[str, SumSpec]
    examples: Mapping[int, int]
    max_update_norm: float
    singles: bool = False
    state: ClientState = field(default_factory=dict)
    check: Callable[[Mapping[str, Sum], Sequence[int]], None] = _anything


def fold_reply(aggregator: Aggregator, fold: Fold, request: BlockRequest, reply: Reply) -> Fold:
    """Returns the fold with one block's checked reply in it; a bad one leaves its rows only."""
    fold = replace(fold, repeatable=fold.repeatable and not reply.timed_out)
    if isinstance(reply, BlockFailure):
        bad = bad_rows(request.client_ids, reply.status, one_line(reply.reason))
        return replace(fold, rows=fold.rows + bad)
    rows = fold.rows + tuple(replace(row, reason=one_line(row.reason)) for row in reply.rows)
    fold = replace(fold, rows=rows, bytes_up=fold.bytes_up + reply.size_bytes)
    if not any(row.status == "ok" for row in reply.rows):
        return fold
    return replace(fold, aggregate=aggregator.add(fold.aggregate, reply))


def check_partial(partial: Partial, request: BlockRequest, expected: Expected) -> None:
    """Raises `UpdateError` unless the partial is about the block's clients and fit to be added."""
    if partial.about != request.about:
        raise UpdateError(f"answers {partial.about}, asked was {request.about}")
    told = tuple(row.client_id for row in partial.rows)
    if told != request.client_ids:
        raise UpdateError(f"partial is about clients {told}, asked were {request.client_ids}")
    good = [row for row in partial.rows if row.status == "ok"]
    for row in good:
        _check_row(row, expected.examples[row.client_id])
    if partial.sums if expected.singles else partial.singles:
        asked, came = ("single", "sums of") if expected.singles else ("sums of", "single")
        raise UpdateError(f"expected {asked} updates, got {came} updates")
    if expected.singles:
        _check_singles(partial, len(good), expected)
    else:
        _check_sums(partial, good, expected)
    keepers = {row.client_id for row in good} if expected.state else set()
    if set(partial.states) != keepers:
        raise UpdateError(f"states are of {sorted(partial.states)}, expected {sorted(keepers)}")
    for state in partial.states.values():
        check_state(state, expected.state)


def _check_row(row: Row, examples: int) -> None:
    if row.examples != examples or row.examples < 1:
        raise UpdateError(
            f"client {row.client_id} claims {row.examples} examples, its hello said {examples}"
        )
    check_metrics(row.metrics)


def _check_sums(partial: Partial, good: list[Row], expected: Expected) -> None:
    arrays = {name: part.arrays for name, part in partial.sums.items()}
    check_arrays(arrays, expected.sums, expected.params, expected.roles)
    for name, spec in expected.sums.items():
        weight = sum(spec.weigh(row.examples) for row in good)
        if partial.sums[name].weight != weight:
            raise UpdateError(f"{name}: weight is {partial.sums[name].weight}, expected {weight}")
    if good:
        delta = partial.sums["delta"]
        check_norm(delta.arrays, expected.max_update_norm, delta.weight)
        expected.check(partial.sums, [row.examples for row in good])


def _check_singles(partial: Partial, count: int, expected: Expected) -> None:
    # `expand` takes no memory: the shape is all that is looked at.
    like = {n: t.expand(count, *t.shape) for n, t in expected.params.items()}
    check_arrays(partial.singles, expected.sums, like, expected.roles)
    flat = [t.reshape(count, math.prod(t.shape[1:])) for t in partial.singles["delta"].values()]
    norms = torch.stack([t.double().square().sum(1) for t in flat]).sum(0).sqrt()
    if bool((norms > expected.max_update_norm).any()):
        bound = expected.max_update_norm
        raise UpdateError(f"norm of a delta is {float(norms.max()):.3g}, the bound is {bound:g}")
