"""Rounds: sample, send, fold, step; evaluate. Plain values in, plain values out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from server.aggregators.placed import placed_on
from server.cohort import draw_cohort
from server.device import HOST, on_device, on_host, server_device
from server.evaluation import Evaluator
from server.events import BlockFinished, Notice, Observer
from server.fold import Expected, Fold, check_partial, fold_reply
from server.parts import Parts, check_cohort, parts_of
from server.patience import one_by_one_when_bad
from server.population import Population
from server.recording import Attempt, Told, make_record
from server.records import RoundRecord, Seconds
from server.sampling import count_of
from server.state import ServerState, StateStore
from shared_models.arrays import (
    Arrays,
    Role,
    add,
    cast,
    global_norm,
    roles_of,
    scaled,
    with_role,
)
from shared_models.config import Config, TrainStage
from shared_models.errors import RoundError
from shared_models.messages import BlockRequest, Kept, Reply, Send
from shared_models.objectives import Terms
from shared_models.partial import ClientState, Partial
from shared_models.schedules import schedule_of
from shared_models.task import Task


@dataclass(frozen=True)
class StageRun:
    """What stays the same over the rounds of a stage.

    `states` has what clients keep. Where their nodes keep it, under the run id `kept_under`, it has
    empty ones: who kept something that counted, and when. `given` is what the stage before hands
    over for the objective to tell everybody, besides the weights. Of `costs`, less is better.
    """

    config: Config
    stage: TrainStage
    roles: Mapping[str, Role]
    population: Population
    evaluate: Evaluator | None
    parts: Parts
    measures: tuple[str, ...]
    states: StateStore | None = None
    costs: frozenset[str] = frozenset()
    device: torch.device = HOST
    kept_under: str | None = None
    given: Mapping[str, Arrays] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundResult:
    """The state after a round, its record, and who was asked."""

    state: ServerState
    record: RoundRecord
    cohort: tuple[int, ...]


def make_stage_run(
    config: Config,
    stage: TrainStage,
    task: Task,
    population: Population,
    evaluate: Evaluator | None,
) -> StageRun:
    """Returns a stage's parts, as its config asks for them.

    A model of which clients keep a part is not `evaluate`d: the server has no such arrays. Raises
    `InputError` when the device of the server is not there, or too few clients for its aggregator.
    """
    check_cohort(stage, len(population))
    roles, device = roles_of(task.model(), stage.personal, stage.freezes), server_device(config)
    parts = parts_of(stage, task, roles)
    parts = replace(parts, aggregator=placed_on(device, parts.aggregator))
    measures, own = task.measures(), None if stage.personal else evaluate
    return StageRun(
        config, stage, roles, population, own, parts, measures, costs=task.costs, device=device
    )


def begin_stage(run: StageRun, params: Arrays) -> ServerState:
    """Returns the state before round 1; optimiser state does not pass from stage to stage."""
    trainable = with_role(params, run.roles, "trainable")
    extras = {**run.parts.objective.server.init(params), **run.given}
    return ServerState(run.stage.name, 0, params, run.parts.optimizer.init(trainable), extras)


def run_round(run: StageRun, state: ServerState, send: Send, observe: Observer) -> RoundResult:
    """Runs one round; raises `RoundError` when no cohort gives enough usable updates."""
    began = time.perf_counter()
    tried: list[Attempt] = []
    while not tried or tried[-1].fold.usable < quorum(run):
        if len(tried) == run.stage.max_attempts:
            raise RoundError(_too_few(run, tried))
        if tried:
            observe(Notice(_again(run, tried[-1])))
            tried[-1] = tried[-1].without_updates()
        tried.append(_attempt(run, state, len(tried), send, observe))
    trained = time.perf_counter()
    after = step(run, state, tried[-1].fold)
    stepped = time.perf_counter()
    seconds = Seconds(
        total=stepped - began, train=trained - began, aggregate=stepped - trained, evaluate=0.0
    )
    record = make_record(after, tried, seconds)
    cohort = tuple(sorted(tried[-1].cohort.in_time))
    return RoundResult(after, record, cohort)


def quorum(run: StageRun) -> int:
    """Returns how many usable updates a round needs; with as many or more the aggregator works."""
    target = min(run.stage.clients_per_round, len(run.population))
    least = max(run.stage.min_clients, count_of(run.stage.min_fraction, target), 1)
    too_few = (count for count in range(least, target) if run.parts.aggregator.fault(count))
    return max(too_few, default=least - 1) + 1


def _attempt(
    run: StageRun, state: ServerState, number: int, send: Send, observe: Observer
) -> Attempt:
    """Asks one cohort, in waves: the first that suffice, and more while they do not."""
    about = (run.stage.name, state.round + 1, number)
    cohort = draw_cohort(run.config, run.stage, run.population, about)
    if run.states is not None:
        run.states.rewind(state.stage, state.round)
    fold = Fold(run.parts.aggregator.init())
    waiting = list(cohort.in_time)
    blocks, told = 0, Told(send)
    while waiting and (missing := cohort.target - fold.usable) > 0:
        wave, waiting = waiting[:missing], waiting[missing:]
        requests = make_requests(run, state, about, wave, blocks)
        blocks += len(requests)
        for request, reply in _replies(run, state, requests, told.send):
            fold = _folded(run, fold, request, reply)
            observe(BlockFinished(run.stage.name, request.round, len(request.client_ids)))
    return Attempt(about, cohort, replace(fold, bytes_down=told.bytes_down))


def make_requests(
    run: StageRun,
    state: ServerState,
    about: tuple[str, int, int],
    client_ids: Sequence[int],
    first: int = 0,
) -> list[BlockRequest]:
    """Returns requests that train these clients, one per block; the first has this number."""
    blocks = run.population.blocks(sorted(client_ids), run.config.plan.clients_per_block)
    return [
        BlockRequest(*about, place, ids, state.params, node, state.extras)
        for place, (node, ids) in enumerate(blocks, start=first)
    ]


def _replies(
    run: StageRun, state: ServerState, requests: Sequence[BlockRequest], send: Send
) -> Iterator[tuple[BlockRequest, Reply]]:
    """Yields each request with its checked reply, as they come."""
    expected = _expected(run, state)

    def check(request: BlockRequest, partial: Partial) -> None:
        check_partial(partial, request, expected)

    replies = one_by_one_when_bad(send, with_states(run, state, requests), check)
    return zip(requests, replies, strict=True)


def _folded(run: StageRun, fold: Fold, request: BlockRequest, reply: Reply) -> Fold:
    """Returns the fold with a reply in it; what its clients keep is put aside."""
    if run.states is not None and isinstance(reply, Partial):
        run.states.save(request.stage, request.round, _kept(run, reply))
    return fold_reply(run.parts.aggregator, fold, request, reply)


def _kept(run: StageRun, reply: Partial) -> Mapping[int, ClientState]:
    if run.kept_under is None:
        return reply.states
    return {row.client_id: {} for row in reply.rows if row.status == "ok"}


def with_states(
    run: StageRun, state: ServerState, requests: Sequence[BlockRequest]
) -> Iterator[BlockRequest]:
    """Yields the requests with what their clients have kept, loaded when a request is sent.

    Where that is on their nodes, they are told which round's it is.
    """
    for request in requests:
        key = (state.stage, state.round, request.client_ids)
        if run.states is None:
            yield request
        elif run.kept_under is None:
            yield replace(request, states=run.states.load(*key))
        else:
            yield replace(request, kept=Kept(run.kept_under, run.states.newest(*key)))


def _expected(run: StageRun, state: ServerState) -> Expected:
    objective, stage = run.parts.objective, run.stage
    clipped = math.inf if stage.clip_norm is None else stage.clip_norm * (1 + 1e-4)
    bound = min(stage.max_update_norm, clipped)
    rate = stage.local_learning_rate * schedule_of(stage, "local")(state.round + 1)
    terms = Terms(stage.local_epochs, stage.batch_size, rate, bound, state.extras)
    return Expected(
        state.params,
        run.roles,
        objective.sums,
        run.population.examples_of,
        bound,
        run.parts.aggregator.needs_singles,
        objective.init_state(state.params) if run.kept_under is None else {},
        lambda sums, examples: objective.check(sums, examples, terms),
    )


def step(run: StageRun, state: ServerState, fold: Fold) -> ServerState:
    """Returns the state after the server optimiser's step, by the role of each array.

    Trainable arrays move by the optimiser's step on `-mean(delta)`, averaged ones become the mean
    of the clients', carried and personal ones stay. It is done on the server's device. Raises
    `RoundError` when something in it is not finite any more.
    """
    after = stepped(run, on_device(state, run.device), fold)
    _require_finite(run, after)
    return on_host(after)


def _require_finite(run: StageRun, state: ServerState) -> None:
    shared = [name for name, role in run.roles.items() if role in ("trainable", "averaged")]
    arrays = {name: state.params[name] for name in shared}
    for slot, own in state.extras.items():
        arrays |= {f"{slot}.{name}": tensor for name, tensor in own.items()}
    # The norm alone may overflow.
    if bool(torch.isfinite(global_norm(arrays))):
        return
    for name, tensor in arrays.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RoundError(_diverged(state, f"{name} holds NaN or infinite values"))


def _diverged(state: ServerState, found: object) -> str:
    return (
        f"stage {state.stage!r}, round {state.round}: the model diverged ({found}); "
        "lower local_learning_rate or server_learning_rate, or set local_clip_norm"
    )


def stepped(run: StageRun, state: ServerState, fold: Fold) -> ServerState:
    """Returns the state after the step, unchecked, on the device that the state is on."""
    number = state.round + 1
    means = run.parts.aggregator.finish(fold.aggregate)
    share = fold.usable / len(run.population)
    means, extras = run.parts.objective.server.absorb(means, state.extras, share)
    trainable = with_role(state.params, run.roles, "trainable")
    dtype = next(iter(trainable.values())).dtype
    gradient = cast(scaled(means["delta"], -1.0), dtype)
    change, optimizer = run.parts.optimizer.update(gradient, state.optimizer, trainable)
    moved = add(trainable, change, run.parts.schedule(number))
    params = {**state.params, **moved, **cast(means["stats"], dtype)}
    extras = {name: cast(arrays, dtype) for name, arrays in extras.items()}
    return replace(state, round=number, params=params, optimizer=optimizer, extras=extras)


def is_due(run: StageRun, state: ServerState) -> bool:
    """Whether the model after this round is to be measured."""
    return state.round % run.config.evaluate.every == 0 or state.round == run.stage.rounds


def evaluate_round(run: StageRun, result: RoundResult) -> RoundResult:
    """Returns the round with what the server measures of its model, where that is due.

    Raises `RoundError` when the model has diverged.
    """
    state, record = result.state, result.record
    if run.evaluate is None or not is_due(run, state):
        return result
    began = time.perf_counter()
    found = run.evaluate(state.params)
    if not all(math.isfinite(value) for value in found.values()):
        raise RoundError(_diverged(state, found))
    took = record.seconds.evaluate + time.perf_counter() - began
    seconds = replace(record.seconds, evaluate=took)
    return replace(result, record=replace(record, eval=found, seconds=seconds))


def _again(run: StageRun, attempt: Attempt) -> str:
    _, number, _ = attempt.about
    return f"round {number}: {_usable(run, attempt)}; asking a new cohort"


def _too_few(run: StageRun, tried: Sequence[Attempt]) -> str:
    stage, number, _ = tried[-1].about
    told = f"stage {stage!r}, round {number}: {_usable(run, tried[-1])}, in {len(tried)} cohorts"
    rows = (*tried[-1].fold.rows, *tried[-1].cohort.late)
    bad = next((row for row in rows if row.status != "ok"), None)
    why = f"; client {bad.client_id}: {bad.reason}" if bad else ""
    return f"{told}{why}; mend the cause and go on with --resume"


def _usable(run: StageRun, attempt: Attempt) -> str:
    return (
        f"{attempt.fold.usable or 'none'} of {attempt.asked} clients sent a usable update, "
        f"the quorum is {quorum(run)}"
    )
