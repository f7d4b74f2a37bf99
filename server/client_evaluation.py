"""The model as clients see it: measured by a share of them, each on its own examples.

A mean over all examples hides whom a model serves badly; the distribution over clients does not
(Li et al., "Fair resource allocation in federated learning", ICLR 2020, section 4, whose tables
have the variance and the worst and best tenth of the clients).
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.best import smaller_is_better
from server.coordinator import RoundResult, StageRun, is_due, with_states
from server.patience import one_by_one_when_bad
from server.sampling import sample_cohort
from shared_models.checks import check_metrics
from shared_models.errors import RoundError, UpdateError, one_line
from shared_models.messages import BlockFailure, BlockRequest, Reply, Send
from shared_models.partial import Partial, Row, bad_rows

_PERCENTILES = (10, 50, 90)


@dataclass(frozen=True)
class Measured:
    """A round with what its clients measured; `rows` are for the run folder, one a client."""

    result: RoundResult
    rows: tuple[Row, ...] = ()


def measure_on_clients(run: StageRun, result: RoundResult, send: Send) -> Measured:
    """Asks a share of the clients to measure the round's model, where the config says so.

    Raises `RoundError` when not one of them could.
    """
    fraction = run.config.evaluate.clients_fraction
    if fraction == 0.0 or not is_due(run, result.state):
        return Measured(result)
    began = time.perf_counter()
    requests = _requests(run, result, fraction)

    def check(request: BlockRequest, partial: Partial) -> None:
        _check(request, partial, run)

    asked = with_states(run, result.state, requests)
    replies = one_by_one_when_bad(send, asked, check)
    rows = tuple(row for pair in zip(requests, replies, strict=True) for row in _rows(*pair))
    good = [row for row in rows if row.status == "ok"]
    if not good:
        raise RoundError(
            f"stage {result.state.stage!r}, round {result.state.round}: none of {len(rows)} "
            f"clients could evaluate; client {rows[0].client_id}: {rows[0].reason}"
        )
    took, seconds = time.perf_counter() - began, result.record.seconds
    seconds = replace(seconds, evaluate=seconds.evaluate + took, total=seconds.total + took)
    told = {**summarize_rows(good, run.costs), "failed": float(len(rows) - len(good))}
    record = replace(result.record, clients_eval=told, seconds=seconds)
    return Measured(replace(result, record=record), rows)


def _requests(run: StageRun, result: RoundResult, fraction: float) -> list[BlockRequest]:
    state, population = result.state, run.population
    size = math.ceil(fraction * len(population))
    key = (state.stage, state.round, 0)
    asked = sample_cohort(population.client_ids, size, run.config.seed, key, "evaluate")
    blocks = population.blocks(asked, run.config.plan.clients_per_block)
    return [
        BlockRequest(*key, place, client_ids, state.params, node, state.extras)
        for place, (node, client_ids) in enumerate(blocks)
    ]


def _check(request: BlockRequest, partial: Partial, run: StageRun) -> None:
    if tuple(row.client_id for row in partial.rows) != request.client_ids:
        raise UpdateError("the reply is about other clients")
    if partial.sums or partial.singles or partial.states:
        raise UpdateError("the reply holds more than metrics")
    for row in (row for row in partial.rows if row.status == "ok"):
        check_metrics(row.metrics)
        if unknown := sorted(set(row.metrics) - set(run.measures)):
            raise UpdateError(f"client {row.client_id} tells of {unknown}, which nobody asked for")
        if row.examples != run.population.examples_of[row.client_id]:
            raise UpdateError(f"client {row.client_id} claims {row.examples} examples")


def _rows(request: BlockRequest, reply: Reply) -> tuple[Row, ...]:
    if isinstance(reply, BlockFailure):
        return bad_rows(request.client_ids, reply.status, one_line(reply.reason))
    return tuple(replace(row, reason=one_line(row.reason)) for row in reply.rows)


def summarize_rows(rows: Sequence[Row], costs: Collection[str] = ()) -> dict[str, float]:
    """Returns each metric's mean over examples, and how it is spread over clients.

    That is, every client counting alike: percentiles, the mean of the tenth of the clients whom
    the model serves worst (rounded up), and the variance.

    >>> rows = [Row(k, 10, {"accuracy": k / 10}) for k in range(11)]
    >>> told = summarize_rows(rows)
    >>> told["accuracy_p10"], told["accuracy_worst10"], round(told["accuracy_variance"], 6)
    (0.1, 0.05, 0.1)
    """
    told = {"clients": float(len(rows))}
    for name in dict.fromkeys(name for row in rows for name in row.metrics):
        own = [row for row in rows if name in row.metrics]
        values = np.array([row.metrics[name] for row in own])
        less = smaller_is_better(name, costs)
        told[name] = float(np.average(values, weights=[row.examples for row in own]))
        told |= {
            f"{name}_{spread}": value for spread, value in _spread(values, less_is_better=less)
        }
    return told


def _spread(values: NDArray[np.float64], *, less_is_better: bool) -> Iterator[tuple[str, float]]:
    for percent, value in zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True):
        yield f"p{percent}", round(float(value), 6)
    worst_first = np.sort(values)[:: -1 if less_is_better else 1]
    yield "worst10", float(worst_first[: math.ceil(len(values) / 10)].mean())
    yield "variance", float(values.var())


def as_columns(rows: Sequence[Row]) -> Mapping[str, Any]:
    """Returns the rows as columns, for a file that people load into a table."""
    names = sorted({name for row in rows for name in row.metrics})
    return {
        "client_id": [row.client_id for row in rows],
        "examples": [row.examples for row in rows],
        "status": [row.status for row in rows],
        "reason": [row.reason for row in rows],
        **{name: [row.metrics.get(name) for row in rows] for name in names},
    }
