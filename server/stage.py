"""A stage's rounds, one after another: trained, measured, compared, and made to last."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from server.background import OneBehind
from server.best import better, has_stopped, measure
from server.checkpoints import Checkpoint, oldest_kept, save_checkpoint
from server.client_evaluation import Measured, as_columns, measure_on_clients
from server.coordinator import RoundResult, StageRun, begin_stage, evaluate_round, run_round
from server.events import Notice, Observer, RoundFinished, StageStarted
from server.manifest import Engine
from server.memory import MemoryPeak
from server.population import Enough, Roll
from server.records import Best, RoundRecord
from server.run_folder import RunFolder
from server.state import ServerState, StateStore
from shared_models.arrays import Arrays
from shared_models.client_states import ClientStates
from shared_models.config import Config, TrainStage
from shared_models.errors import RoundError
from shared_models.files import write_json
from shared_models.messages import Send
from shared_models.partial import Row
from shared_models.task import Task


@dataclass(frozen=True)
class Transport:
    """How the coordinator reaches clients: ask who is there, have blocks trained or measured.

    `run_id` is our own, if the run has one that outlives Flower's.
    """

    hello: Callable[[Enough], Roll]
    train: Send
    evaluate: Send
    calibrate: Send
    engine: Engine
    run_id: str | None = None


@dataclass(frozen=True)
class Run:
    """What stays the same over the stages of a run; `task` is that of its final model."""

    config: Config
    folder: RunFolder
    transport: Transport
    observe: Observer
    task: Task
    memory: MemoryPeak = field(default_factory=MemoryPeak)


def run_stage(run: Run, about: StageRun, params: Arrays, latest: Checkpoint | None) -> Arrays:
    """Runs a stage to its end, from these weights or from a checkpoint of it; returns its weights.

    Those are the last round's, or the best one's where the config says so.
    """
    state = begin_stage(about, params) if latest is None else latest.state
    rounds = Rounds(run, about, latest)
    _announce(run, about, state)
    with _client_states(run, about, state) as states:
        with OneBehind() as behind:
            while not rounds.are_over(state):
                state = _next_round(rounds, replace(about, states=states), state, behind)
        rounds.prune(states)
    return rounds.outcome(state)


def _announce(run: Run, about: StageRun, state: ServerState) -> None:
    stage, clients = about.stage, len(about.population)
    asked = min(stage.clients_per_round, clients)
    run.observe(StageStarted(stage.name, stage.rounds, state.round, clients, asked))


@contextlib.contextmanager
def _client_states(run: Run, about: StageRun, state: ServerState) -> Iterator[ClientStates | None]:
    """Yields where clients' states are, as they were after the round that is gone on from."""
    if not about.parts.objective.keeps_state:
        yield None
        return
    stages = [stage.name for stage in run.config.learning_stages]
    with ClientStates(run.folder.client_states_file, stages) as states:
        states.rewind(state.stage, state.round)
        yield states


def _next_round(
    rounds: Rounds, about: StageRun, state: ServerState, behind: OneBehind
) -> ServerState:
    """Runs a round, and starts the work that makes it last; returns the state after it.

    That work runs while the next round trains. That round's state is a new value, so nothing
    changes under this one, and a process that is killed meanwhile resumes from the checkpoint
    before. The server's evaluation is part of it where it may be.
    """
    began, run = time.perf_counter(), rounds.run
    result = run_round(about, state, run.transport.train, run.observe)
    measured = _measured_by_clients(about, result, run.transport.evaluate)
    at_once = must_wait(about.stage, run.transport.engine)
    if at_once:
        measured = replace(measured, result=evaluate_round(about, measured.result))
    if about.states is not None:
        about.states.commit()  # a checkpoint without its states would be worth nothing
    behind.wait()
    rounds.prune(about.states)
    measured = _with_total(measured, time.perf_counter() - began)
    if at_once:
        behind.run(functools.partial(rounds.keep, rounds.compared(measured), measured.rows))
    else:
        behind.run(functools.partial(rounds.finish, measured))
    return result.state


def must_wait(stage: TrainStage, engine: Engine) -> bool:
    """Whether the next round has to wait until the server has evaluated the one before.

    That may decide whether there is a next one. And clients that train in this very process would
    only fight with it for Python's lock. What is found does not depend on when.
    """
    return stage.early_stopping_rounds is not None or engine.name == "inline"


def _measured_by_clients(about: StageRun, result: RoundResult, send: Send) -> Measured:
    try:
        return measure_on_clients(about, result, send)
    except RoundError:
        evaluate_round(about, result)  # when the model has diverged, that is what has to be told
        raise


def _with_total(measured: Measured, seconds: float) -> Measured:
    record = measured.result.record
    record = replace(record, seconds=replace(record.seconds, total=seconds))
    return replace(measured, result=replace(measured.result, record=record))


class Rounds:
    """The rounds of a stage that are over: compared and kept, in order."""

    def __init__(self, run: Run, about: StageRun, latest: Checkpoint | None) -> None:
        self.run = run
        self._about = about
        self._last = latest
        self._bests = {
            record.round: record.best.round
            for record in run.folder.records()
            if record.stage == about.stage.name and record.best is not None
        }

    def are_over(self, state: ServerState) -> bool:
        """Whether the stage ends with this state."""
        stage = self._about.stage
        stopped = self._last is not None and has_stopped(stage, self._last.record)
        return stopped or state.round >= stage.rounds

    def finish(self, measured: Measured) -> None:
        """Evaluates, compares and keeps a round."""
        result = evaluate_round(self._about, measured.result)
        self.keep(self.compared(replace(measured, result=result)), measured.rows)

    def compared(self, measured: Measured) -> Checkpoint:
        """Returns a round as it will be kept: with the best one up to it, where that is asked."""
        stage, result, last = self._about.stage, measured.result, self._last
        record, weights = result.record, None
        if stage.early_stopping_rounds is not None or stage.keep_best:
            before = None if last is None else last.record.best
            best = better(before, measure(record), self._about.costs)
            record = replace(record, best=best)
            if best is not None:
                self._bests[record.round] = best.round
            if stage.keep_best and last is not None and best == before:
                weights = last.best_params
        clients = self._about.population.client_ids
        self._last = Checkpoint(result.state, record, clients, result.cohort, weights)
        return self._last

    def keep(self, checkpoint: Checkpoint, rows: Sequence[Row]) -> None:
        """Makes a round last: the checkpoint with its record, then the line, then the news."""
        began, run, state = time.perf_counter(), self.run, checkpoint.state
        if rows:
            path = run.folder.client_metrics_file(state.stage, state.round)
            write_json(path, as_columns(rows))
        number = run.config.learning_stages.index(self._about.stage)
        save_checkpoint(run.folder.checkpoints, number, checkpoint, run.config.keep_checkpoints)
        seconds = replace(checkpoint.record.seconds, checkpoint=time.perf_counter() - began)
        record = replace(checkpoint.record, seconds=seconds)
        run.folder.append(record)
        run.memory.look()
        run.observe(RoundFinished(record))

    def prune(self, states: StateStore | None) -> None:
        """Drops the client states that no checkpoint needs any more; nobody may be writing one."""
        oldest = oldest_kept(self.run.folder.checkpoints)
        if states is None or oldest is None:
            return
        stage, number = oldest
        own = self._about.stage
        ends_with_best = stage == own.name and own.keep_best
        states.prune(stage, number, self._bests.get(number, 0) if ends_with_best else 0)

    def outcome(self, state: ServerState) -> Arrays:
        """Returns the stage's weights, and tells when they are not those of its last round."""
        record = None if self._last is None else self._last.record
        if self._last is None or record is None or record.best is None:
            return state.params
        self.run.observe(Notice(_ending(self._about.stage, record, record.best)))
        return self._last.best_params


def _ending(stage: TrainStage, record: RoundRecord, best: Best) -> str:
    stopped = f"stopped after round {record.round}: " if record.round < stage.rounds else ""
    kept = ", its weights are kept" if stage.keep_best else ""
    return (
        f"{stage.name}: {stopped}the best round was {best.round}, "
        f"{best.metric} {best.value:.4f}{kept}"
    )
