"""A run's learning stages: from a config to final weights in a folder, resumable at any round."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from pathlib import Path

from server.calibration import calibrate
from server.checkpoints import Checkpoint, checkpoint_files, load_latest
from server.coordinator import make_stage_run, quorum
from server.evaluation import evaluator_of
from server.events import Notice, Observer
from server.handover import Beginning, begun
from server.keeping import kept_on_nodes
from server.manifest import hosts_in, make_manifest
from server.model_facts import model_facts
from server.population import (
    Enough,
    Population,
    few_labelled,
    hosts_these,
    merge_hellos,
    of_stage,
    rejoined,
)
from server.run_folder import RunFolder
from server.samples import keep_samples
from server.stage import Run, Transport, run_stage
from server.summary import own_peak_mb, summarize
from shared_models.arrays import Arrays, load_arrays, save_arrays
from shared_models.config import Config, TrainStage
from shared_models.errors import CheckpointError, RoundError
from shared_models.files import sha256_of, write_json
from shared_models.stage_task import final_task, stage_task
from shared_models.task import parameter_count


def open_run(config: Config, path: Path, *, resume: bool) -> RunFolder:
    """Returns a new run folder, or with `resume` the one that holds this very run."""
    folder = RunFolder(path)
    if resume and not folder.is_new():
        folder.require_same(config)
    else:
        folder.create(config)
    return folder


def learn(config: Config, folder: RunFolder, transport: Transport, observe: Observer) -> None:
    """Runs the learning stages, going on from the newest checkpoint, and writes what they made.

    The folder is held by who calls.
    """
    began = time.time()
    task = final_task(config)
    run = Run(config, folder, transport, observe, task)
    latest = load_latest(folder.checkpoints, lambda text: observe(Notice(text)))
    if latest is None:
        folder.restart_metrics()
    else:
        folder.complete_metrics(latest.record)
    rounds_before = len(folder.records())
    params = _run_stages(run, latest)
    save_arrays(folder.model_file, params)
    keep_samples(run, params)
    if config.calibrate_stage is not None:
        calibrate(run, config.calibrate_stage, _population(run), params)
    folder.update_summary(
        **summarize(config, folder.all_records(), rounds_before),
        params=parameter_count(task),
        model_sha256=sha256_of(folder.model_file),
        peak_rss_mb=max(run.memory.mb, own_peak_mb()),
        clients=folder.manifest()["population"]["clients"],
        total_s=time.time() - began,
    )


def _run_stages(run: Run, latest: Checkpoint | None) -> Arrays:
    stages = run.config.learning_stages
    first = 0 if latest is None else [s.name for s in stages].index(latest.state.stage)
    params: Arrays = {}
    for stage in stages[first:]:
        # From files also where nothing was interrupted: a run that is resumed begins with the same.
        made = functools.partial(_made, run.folder)
        beginning = Beginning({}, {}) if latest else begun(run.config, stage, made)
        params = _run_stage(run, stage, beginning, latest)
        latest = None  # only the first of these stages can be the one that it is about
        save_arrays(run.folder.stage_file(stage.name), params)
    return params


def _made(folder: RunFolder, stage: TrainStage) -> Arrays:
    return load_arrays(folder.stage_file(stage.name))


def _run_stage(run: Run, stage: TrainStage, first: Beginning, latest: Checkpoint | None) -> Arrays:
    population = _population(run)
    _write_manifest(run, population)
    population = _taking_part(run, stage, population)
    if latest is not None and latest.population != population.client_ids:
        raise _changed("clients", len(latest.population), len(population))
    _require_connected(stage, population, stage.min_clients)
    task = stage_task(run.config, stage.name)
    evaluate = evaluator_of(run.config, task)
    about = make_stage_run(run.config, stage, task, population, evaluate)
    about = replace(kept_on_nodes(about, run.transport.run_id), given=first.extras)
    _require_connected(stage, population, quorum(about))
    return run_stage(run, about, first.params, latest)


def _taking_part(run: Run, stage: TrainStage, population: Population) -> Population:
    own = of_stage(population, run.config, stage)
    if note := few_labelled(population, own, stage):
        run.observe(Notice(note))
    return own


def _require_connected(stage: TrainStage, population: Population, quorum: int) -> None:
    if population.hosts and population.connected < quorum:
        raise RoundError(
            f"stage {stage.name!r}: {population.connected} of {len(population)} clients are "
            f"connected, the quorum is {quorum}; start more and go on with --resume"
        )


def _population(run: Run) -> Population:
    """Returns who takes part: those who are here, on a fleet in a run that has begun who then was.

    A fleet's run has begun with its first checkpoint.
    """
    begun = checkpoint_files(run.folder.checkpoints) and run.folder.manifest_file.exists()
    hosts = hosts_in(run.folder.manifest()) if begun else ()
    known = [client_id for host in hosts for client_id in host.client_ids]
    wanted = run.config.learning_stages[0].clients_per_round
    roll = run.transport.hello(hosts_these(known) if hosts else Enough(wanted))
    for name, reason in roll.left_out.items():
        run.observe(Notice(f"{name} is left out: {reason}"))
    found = merge_hellos(roll.hellos, run.config.plan.nodes)
    if found.hosts and not begun:
        run.folder.manifest_file.unlink(missing_ok=True)  # of an attempt that trained nobody
    return rejoined(hosts, found, lambda text: run.observe(Notice(text))) if hosts else found


def _write_manifest(run: Run, population: Population) -> None:
    """Writes the manifest once; later, raises `CheckpointError` when the ground has changed."""
    now = make_manifest(run.config, population, run.transport.engine)
    now["model"] = model_facts(run.task)
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
