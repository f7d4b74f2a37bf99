"""A run's learning stages: from a config to final weights in a folder, resumable at any round."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from server.background import OneBehind
from server.checkpoints import Checkpoint, load_latest, save_checkpoint
from server.client_evaluation import Measured, as_columns, measure_on_clients
from server.coordinator import (
    StageRun,
    begin_stage,
    make_stage_run,
    run_round,
)
from server.evaluation import Evaluator, evaluation_split, make_evaluator, pick_device
from server.events import Notice, Observer, RoundFinished, StageStarted
from server.manifest import Engine, make_manifest
from server.memory import MemoryPeak
from server.population import Population, merge_hellos
from server.run_folder import RunFolder
from server.summary import own_peak_mb, summarize
from shared_models.arrays import Arrays, in_dtype, save_arrays
from shared_models.config import Config, TrainStage
from shared_models.errors import CheckpointError
from shared_models.files import sha256_of, write_json
from shared_models.messages import Hello, Send
from shared_models.task import Task, parameter_count
from shared_models.tasks import load_task


@dataclass(frozen=True)
class Transport:
    """How the coordinator reaches clients: ask who is there, have blocks trained or evaluated."""

    hello: Callable[[], Mapping[int, Hello]]
    train: Send
    evaluate: Send
    engine: Engine


@dataclass(frozen=True)
class Run:
    """What stays the same over the stages of a run."""

    config: Config
    folder: RunFolder
    transport: Transport
    observe: Observer
    task: Task
    evaluate: Evaluator | None
    memory: MemoryPeak = field(default_factory=MemoryPeak)


def open_run(config: Config, path: Path, *, resume: bool) -> RunFolder:
    """Returns a new run folder, or with `resume` the one that holds this very run."""
    folder = RunFolder(path)
    if resume and not folder.is_new():
        folder.require_same(config)
    else:
        folder.create(config)
    return folder


def learn(config: Config, folder: RunFolder, transport: Transport, observe: Observer) -> None:
    """Runs the learning stages, going on from the newest checkpoint, and writes what they made."""
    with folder.held():
        _learn(config, folder, transport, observe)


def _learn(config: Config, folder: RunFolder, transport: Transport, observe: Observer) -> None:
    began = time.time()
    task = load_task(config.task)
    run = Run(config, folder, transport, observe, task, _evaluator(config, task))
    latest = load_latest(folder.checkpoints, lambda text: observe(Notice(text)))
    if latest is None:
        folder.restart_metrics()
    else:
        folder.complete_metrics(latest.record)
    rounds_before = len(folder.records())
    save_arrays(folder.model_file, _run_stages(run, latest))
    folder.update_summary(
        **summarize(config, folder.records(), rounds_before),
        params=parameter_count(task),
        model_sha256=sha256_of(folder.model_file),
        peak_rss_mb=max(run.memory.mb, own_peak_mb()),
        clients=folder.manifest()["population"]["clients"],
        total_s=time.time() - began,
    )


def _evaluator(config: Config, task: Task) -> Evaluator | None:
    split = evaluation_split(config, task)
    if split is None:
        return None
    device = pick_device(config.evaluate.device)
    return make_evaluator(task, split, device, config.evaluate.batch_size)


def _run_stages(run: Run, latest: Checkpoint | None) -> Arrays:
    stages = run.config.learning_stages
    params = in_dtype(run.task.build(run.config.seed), getattr(torch, run.config.plan.dtype))
    first = 0 if latest is None else [s.name for s in stages].index(latest.state.stage)
    for number, stage in enumerate(stages[first:], start=first):
        # Only the first of these stages can be the one that the checkpoint is about.
        params = _run_stage(run, number, stage, params, latest if number == first else None)
        save_arrays(run.folder.stage_file(stage.name), params)
    return params


def _run_stage(
    run: Run, number: int, stage: TrainStage, params: Arrays, latest: Checkpoint | None
) -> Arrays:
    population = merge_hellos(run.transport.hello())
    _write_manifest(run, population)
    stage_run = make_stage_run(run.config, stage, run.task, population, run.evaluate)
    state = begin_stage(stage_run, params)
    if latest is not None:
        if latest.population != population.client_ids:
            raise _changed("clients", len(latest.population), len(population))
        state = latest.state
    asked = min(stage.clients_per_round, len(population))
    run.observe(StageStarted(stage.name, stage.rounds, state.round, len(population), asked))
    with OneBehind() as behind:
        while state.round < stage.rounds:
            result = run_round(stage_run, state, run.transport.train, run.observe)
            measured = measure_on_clients(stage_run, result, run.transport.evaluate)
            behind.run(functools.partial(_commit, run, number, stage_run, measured))
            state = result.state
    return state.params


def _commit(run: Run, number: int, stage_run: StageRun, measured: Measured) -> None:
    """Makes a round last: first the checkpoint with its record, then the line, then the news.

    It runs while the next round trains. That round's state is a new value, so nothing changes
    under this one, and a process that is killed meanwhile resumes from the checkpoint before.
    """
    began, result = time.perf_counter(), measured.result
    if measured.rows:
        path = run.folder.client_metrics_file(result.state.stage, result.state.round)
        write_json(path, as_columns(measured.rows))
    clients = stage_run.population.client_ids
    checkpoint = Checkpoint(result.state, result.record, clients, result.cohort)
    save_checkpoint(run.folder.checkpoints, number, checkpoint, run.config.keep_checkpoints)
    seconds = replace(result.record.seconds, checkpoint=time.perf_counter() - began)
    record = replace(result.record, seconds=seconds)
    run.folder.append(record)
    run.memory.look()
    run.observe(RoundFinished(record))


def _write_manifest(run: Run, population: Population) -> None:
    """Writes the manifest once; later, raises `CheckpointError` when the ground has changed."""
    now = make_manifest(run.config, population, run.transport.engine)
    if not run.folder.manifest_file.exists():
        write_json(run.folder.manifest_file, now)
        return
    then = run.folder.manifest()
    for key in ("config_sha256", "data_sha256", "population", "plan"):
        if then[key] != now[key]:
            raise _changed(key, then[key], now[key])
    if then["versions"]["torch"] != now["versions"]["torch"]:
        raise _changed("torch", then["versions"]["torch"], now["versions"]["torch"])


def _changed(what: str, then: object, now: object) -> CheckpointError:
    return CheckpointError(
        f"{what} changed since the run began: then {then}, now {now}; "
        "the result would not be the same run: put it back, or start a new one"
    )
