"""Rounds: sample, send, fold, step, evaluate. Plain values in, plain values out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psutil

from server.aggregators import Aggregator
from server.aggregators.weighted_mean import weighted_mean
from server.evaluation import Evaluator
from server.events import BlockFinished, Observer
from server.fold import Expected, Fold, fold_reply
from server.population import Population
from server.records import Failure, RoundRecord, Seconds
from server.sampling import cut_blocks, sample_cohort
from server.state import ServerState
from shared_models.arrays import Arrays, Role, add, cast, scaled, size_bytes, with_role
from shared_models.config import Config, TrainStage
from shared_models.errors import RoundError
from shared_models.messages import BlockFailure, BlockRequest, Send
from shared_models.optimizers import Optimizer
from shared_models.optimizers.momentum import momentum
from shared_models.optimizers.sgd import sgd
from shared_models.partial import STANDARD_SUMS, Row


@dataclass(frozen=True)
class StageRun:
    """What stays the same over the rounds of a stage."""

    config: Config
    stage: TrainStage
    roles: Mapping[str, Role]
    population: Population
    evaluate: Evaluator | None
    aggregator: Aggregator
    optimizer: Optimizer


@dataclass(frozen=True)
class RoundResult:
    """The state after a round, its record, and who was asked."""

    state: ServerState
    record: RoundRecord
    cohort: tuple[int, ...]


def make_stage_run(
    config: Config,
    stage: TrainStage,
    roles: Mapping[str, Role],
    population: Population,
    evaluate: Evaluator | None,
) -> StageRun:
    """Returns a stage's parts, as its config asks for them."""
    return StageRun(
        config, stage, roles, population, evaluate, weighted_mean(), server_optimizer(stage)
    )


def server_optimizer(stage: TrainStage) -> Optimizer:
    """Returns the optimiser that steps the server's model, fed with `-mean(delta)`."""
    if stage.server_optimizer == "sgd":
        return sgd(stage.server_learning_rate)
    return momentum(stage.server_learning_rate, stage.server_momentum or 0.0)


def begin_stage(run: StageRun, params: Arrays) -> ServerState:
    """Returns the state before round 1; optimiser state does not pass from stage to stage."""
    trainable = with_role(params, run.roles, "trainable")
    return ServerState(run.stage.name, 0, params, run.optimizer.init(trainable))


def run_round(run: StageRun, state: ServerState, send: Send, observe: Observer) -> RoundResult:
    """Runs one round; raises `RoundError` when no client's update can be used."""
    began = time.perf_counter()
    requests = make_requests(run, state)
    fold, training = _collect(run, state, requests, send, observe)
    if not any(row.status == "ok" for row in fold.rows):
        raise RoundError(_nothing_usable(state, fold.rows))
    after = step(run, state, fold)
    stepped = time.perf_counter()
    evaluation = _evaluate(run, after)
    ended = time.perf_counter()
    seconds = Seconds(
        total=ended - began,
        train=training,
        aggregate=stepped - began - training,
        evaluate=ended - stepped,
    )
    record = _record(after, fold, requests, evaluation, seconds)
    cohort = tuple(sorted(k for request in requests for k in request.client_ids))
    return RoundResult(after, record, cohort)


def make_requests(run: StageRun, state: ServerState) -> list[BlockRequest]:
    """Returns the next round's requests, one per block of its cohort."""
    number, stage, population = state.round + 1, run.stage, run.population
    attempt = 0
    key = (stage.name, number, attempt)
    cohort = sample_cohort(population.client_ids, stage.clients_per_round, run.config.seed, key)
    blocks = cut_blocks(cohort, run.config.plan.clients_per_block, population.node_of)
    return [
        BlockRequest(stage.name, number, attempt, place, client_ids, state.params, node)
        for place, (node, client_ids) in enumerate(blocks)
    ]


def _collect(
    run: StageRun,
    state: ServerState,
    requests: Sequence[BlockRequest],
    send: Send,
    observe: Observer,
) -> tuple[Fold, float]:
    """Folds the replies as they come; returns also the seconds spent waiting for them."""
    expected = Expected(
        state.params,
        run.roles,
        STANDARD_SUMS,
        run.population.examples_of,
        run.stage.max_update_norm,
    )
    fold = Fold(run.aggregator.init())
    asked = time.perf_counter()
    replies = send(requests)
    waited = time.perf_counter() - asked
    for request in requests:
        asked = time.perf_counter()
        reply = next(replies, BlockFailure("no reply came"))
        waited += time.perf_counter() - asked
        fold = fold_reply(run.aggregator, fold, request, reply, expected)
        observe(BlockFinished(run.stage.name, request.round, len(request.client_ids)))
    return fold, waited


def step(run: StageRun, state: ServerState, fold: Fold) -> ServerState:
    """Returns the state after the server optimiser's step, by the role of each array.

    Trainable arrays move by the optimiser's step on `-mean(delta)`, averaged ones become the mean
    of the clients', carried ones stay.
    """
    means = run.aggregator.finish(fold.aggregate)
    trainable = with_role(state.params, run.roles, "trainable")
    dtype = next(iter(trainable.values())).dtype
    gradient = cast(scaled(means["delta"], -1.0), dtype)
    change, optimizer = run.optimizer.update(gradient, state.optimizer, trainable)
    stats = cast(means["stats"], dtype)
    params = {**state.params, **add(trainable, change), **stats}
    return replace(state, round=state.round + 1, params=params, optimizer=optimizer)


def is_due(run: StageRun, state: ServerState) -> bool:
    """Whether the model after this round is to be measured."""
    return state.round % run.config.evaluate.every == 0 or state.round == run.stage.rounds


def _evaluate(run: StageRun, state: ServerState) -> dict[str, float] | None:
    if run.evaluate is None or not is_due(run, state):
        return None
    found = run.evaluate(state.params)
    if not all(math.isfinite(value) for value in found.values()):
        raise RoundError(
            f"stage {state.stage!r}, round {state.round}: the model diverged ({found}); "
            "lower local_learning_rate or server_learning_rate, or set local_clip_norm"
        )
    return found


def _record(
    state: ServerState,
    fold: Fold,
    requests: Sequence[BlockRequest],
    evaluation: dict[str, float] | None,
    seconds: Seconds,
) -> RoundRecord:
    good = [row for row in fold.rows if row.status == "ok"]
    bad = [
        Failure(row.client_id, row.status, row.reason) for row in fold.rows if row.status != "ok"
    ]
    return RoundRecord(
        stage=state.stage,
        round=state.round,
        clients_selected=len(fold.rows),
        clients_aggregated=len(good),
        clients_failed=len(bad),
        failures=tuple(bad),
        train_loss=_mean_metric(good, "loss"),
        eval=evaluation,
        seconds=seconds,
        bytes_down=sum(size_bytes(request.params) for request in requests),
        bytes_up=fold.bytes_up,
        rss_mb=psutil.Process().memory_info().rss / 2**20,
        time=time.time(),
    )


def _mean_metric(rows: Sequence[Row], name: str) -> float | None:
    """Returns the mean over examples, or None where nobody reports it."""
    told = [(row.metrics[name], row.examples) for row in rows if name in row.metrics]
    total = sum(examples for _, examples in told)
    return sum(value * examples for value, examples in told) / total if total else None


def _nothing_usable(state: ServerState, rows: Sequence[Row]) -> str:
    first = rows[0]
    return (
        f"stage {state.stage!r}, round {state.round + 1}: none of {len(rows)} clients returned a "
        f"usable update; client {first.client_id} {first.status}: {first.reason}"
    )
