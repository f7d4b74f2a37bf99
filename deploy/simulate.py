"""A whole run on one machine: the learning stages under an engine, then the export stages."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.events import ArtefactMeasured, ExportStarted, Observer
from deploy.planning import check_replay, settle_plan
from deploy.report.partition import counting_labels
from server.run_folder import RunFolder
from server.summary import own_peak_mb
from shared_models.config import Config, ExportStage, Faults, TrainStage, to_toml
from shared_models.config.faults import FAULT_KINDS
from shared_models.errors import ExportError, InputError
from shared_models.tasks import load_task

if TYPE_CHECKING:
    from clients.host import Host
    from deploy.edge.artefact import Artefact
    from deploy.engines.grid import LocalGrid, RunConfig
    from server.budget import Demand

# Flower and Ray would otherwise reach out for news and statistics.
_OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def check(config: Config, folder: Path, plan: str | None = None) -> None:
    """Raises `InputError` or `DataError` when a run could not start, or would not fit.

    It is to be in `folder`, or near it; nothing is written. `plan` is what `--plan` named, if
    anything.
    """
    from clients.host import open_host
    from server.budget import check_budget, room_at
    from server.checkpoints import checkpoint_files
    from server.device import check_devices
    from server.evaluation import evaluation_split
    from server.handover import handover_notes
    from server.parts import check_cohort
    from server.population import no_labels
    from server.robustness import check_attack
    from shared_models.stage_task import check_calibration, final_task
    from shared_models.tasks.trial import try_out

    for name in config.own_tasks:
        try_out(name, load_task(name))
    host = _taking_part(open_host(config))
    if plan is not None:
        check_replay(plan, host.dataset.digest())
    evaluation_split(config, host.task)
    check_attack(config, host.task)
    if not checkpoint_files(folder / "checkpoints"):
        handover_notes(config)
    check_devices(config)
    _check_victims(config.faults, host.client_ids)
    for stage in config.learning_stages:
        if not host.taking_part(stage):
            raise no_labels(config, stage)
        host.trainer(stage.name)
        check_cohort(stage, len(host.taking_part(stage)))
        check_budget(_demand(stage, host), config.keep_checkpoints, room_at(folder))
    check_calibration(config)
    if config.calibrate_stage is not None:
        host.calibrator(config.calibrate_stage.name)
    if (export := config.export_stage) is not None:
        from deploy.export.formats import choose
        from deploy.export.shipping import shipped

        task = final_task(config)
        choose(shipped(task, task.model()).model, export.formats, export.quantize, task.answer)


def _taking_part(host: Host) -> Host:
    """Returns the host of those clients that the plan's block map names, if it has one."""
    nodes = host.config.plan.nodes
    if nodes is None:
        return host
    ids = tuple(sorted(client_id for own in nodes for client_id in own))
    if unknown := sorted(set(ids) - set(host.client_ids)):
        raise InputError(f"plan.nodes: the data has no client {unknown[0]}")
    return replace(host, client_ids=ids)


def _check_victims(faults: Faults, client_ids: Sequence[int]) -> None:
    known = set(client_ids)
    for kind in FAULT_KINDS:
        victims = getattr(faults, kind)
        strangers = set(victims) - known if isinstance(victims, tuple) else set()
        if strangers:
            raise InputError(
                f"faults.{kind}: there is no client {min(strangers)}; "
                f"the {len(known)} there are have ids from {min(known)} to {max(known)}"
            )


def _demand(stage: TrainStage, host: Host) -> Demand:
    """Returns what a stage asks of the server's disk and memory."""
    import torch

    from server.budget import Demand
    from server.parts import parts_of
    from shared_models.arrays import in_dtype, roles_of, size_bytes

    task = host.task_of(stage.name)
    roles = roles_of(task.model(), stage.personal, stage.freezes)
    objective = parts_of(stage, task, roles).objective
    arrays = in_dtype(task.build(host.config.seed), getattr(torch, host.config.plan.dtype))
    kept = objective.init_state(arrays).values()
    sent = [spec.like(arrays, roles) for spec in objective.sums.values()]
    return Demand(
        stage=stage.name,
        rounds=stage.rounds,
        clients=len(host.taking_part(stage)),
        cohort=min(stage.clients_per_round, len(host.taking_part(stage))),
        state_bytes=sum(map(size_bytes, kept)),
        update_bytes=sum(map(size_bytes, sent)),
        aggregator=stage.aggregator,
        keeps_updates=stage.needs_singles,
        keeps_best=stage.keep_best,
    )


@contextlib.contextmanager
def open_grid(config: Config) -> Iterator[LocalGrid]:
    """Yields the config's engine.

    Open it before anything else: Ray's workers load torch and the data while this process does.
    """
    os.environ.update(_OFFLINE)
    run_config: RunConfig = {"config": to_toml(config)}
    if config.engine == "ray":
        with _ray_grid(config, run_config) as grid:
            yield grid
        return
    from clients.app import app
    from deploy.engines.inline import InlineGrid

    yield InlineGrid(app, run_config)


@contextlib.contextmanager
def _ray_grid(config: Config, run_config: RunConfig) -> Iterator[LocalGrid]:
    from deploy.engines.cluster import connected

    with _importing("server.app"), connected(config.ray_address, config.workers) as workers:
        from deploy.engines.ray import RayGrid

        grid = RayGrid("clients.app:app", run_config, workers, here=config.ray_address is None)
        try:
            yield grid
        finally:
            grid.close()


@contextlib.contextmanager
def _importing(module: str) -> Iterator[None]:
    """Imports a module meanwhile: Ray takes seconds to start, most of them waiting; torch one."""
    imports = threading.Thread(target=importlib.import_module, args=(module,))
    imports.start()
    try:
        yield
    finally:
        imports.join()  # an interpreter that ends under a half-imported torch crashes


def simulate(
    config: Config, path: Path, observe: Observer, grid: LocalGrid, *, resume: bool
) -> RunFolder:
    """Runs all stages of a config into the folder `path`; `resume` goes on where it stopped."""
    began = time.time()
    if config.plan.is_open:
        grid.wait()  # what starts up would slow what is measured
        config, observe = settle_plan(config, path, observe)
    _learn(config, path, counting_labels(config, path, observe), grid, resume=resume)
    grid.close()
    folder = RunFolder(path)
    if config.export_stage is not None:
        export_stage(folder, config.export_stage, observe)
    peak = max(folder.summary()["peak_rss_mb"], own_peak_mb())
    folder.update_summary(status="done", reason=None, total_s=time.time() - began, peak_rss_mb=peak)
    return folder


def _learn(config: Config, path: Path, observe: Observer, grid: LocalGrid, *, resume: bool) -> None:
    from flwr.app import Context, RecordDict

    from server.app import make_app

    run_config: RunConfig = {"config": to_toml(config), "out": str(path), "resume": resume}
    grid.configure({"config": to_toml(config)})
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config
    )
    make_app(observe)(grid, context)


def export_stage(folder: RunFolder, stage: ExportStage, observe: Observer) -> tuple[Artefact, ...]:
    """Runs one export stage on a finished run folder and adds it to the summary."""
    from deploy.export.exporter import export_run

    if fault := folder.config().export_fault:
        raise InputError(fault)
    made: list[Artefact] = []

    def keep(artefact: Artefact) -> None:
        made.append(artefact)
        observe(ArtefactMeasured(artefact))

    observe(ExportStarted(stage.name))
    with folder.held():
        try:
            export_run(folder, stage, keep)
        except ExportError as error:
            told = _told(folder, made)
            folder.update_summary(status="failed", reason=str(error), artefacts=told)
            raise
        told = _told(folder, made)
        bad = next((one["file"] for one in told if not one.get("passed", True)), None)
        status, reason = ("done", None) if bad is None else ("failed", f"{bad}: failed its gate")
        folder.update_summary(status=status, reason=reason, artefacts=told)
    return tuple(made)


def _told(folder: RunFolder, made: list[Artefact]) -> list[dict[str, object]]:
    """Returns the artefacts of the summary with new ones in the place of old."""
    known = {told["file"]: told for told in folder.summary().get("artefacts", [])}
    return list({**known, **{artefact.file: asdict(artefact) for artefact in made}}.values())
