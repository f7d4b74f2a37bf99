"""A whole run on one machine: the learning stages under an engine, then the export stages."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.events import ArtefactMeasured, ExportStarted, Observer
from deploy.planning import settle_plan
from server.run_folder import RunFolder
from server.summary import peak_rss_mb
from shared_models.config import Config, ExportStage, to_toml
from shared_models.errors import ExportError

if TYPE_CHECKING:
    from deploy.export.artefact import Artefact

# Flower and Ray would otherwise reach out for news and statistics.
_OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def check(config: Config) -> None:
    """Raises `InputError` or `DataError` when a run could not even start; nothing is written."""
    from clients.host import open_host
    from server.evaluation import evaluation_split, pick_device

    host = open_host(config)
    evaluation_split(config, host.task)
    pick_device(config.evaluate.device)
    for stage in config.learning_stages:
        host.trainer(stage.name)


def simulate(config: Config, path: Path, observe: Observer, *, resume: bool) -> RunFolder:
    """Runs all stages of a config into the folder `path`; `resume` goes on where it stopped."""
    began = time.time()
    os.environ.update(_OFFLINE)
    config = settle_plan(config, observe)
    _learn(config, path, observe, resume=resume)
    folder = RunFolder(path)
    if config.export_stage is not None:
        export_stage(folder, config.export_stage, observe)
    folder.update_summary(
        status="done", reason=None, total_s=time.time() - began, peak_rss_mb=peak_rss_mb()
    )
    return folder


def _learn(config: Config, path: Path, observe: Observer, *, resume: bool) -> None:
    from flwr.app import Context, RecordDict

    from clients.app import app as client_app
    from deploy.engines.inline import InlineGrid, RunConfig
    from server.app import make_app

    run_config: RunConfig = {"config": to_toml(config), "out": str(path), "resume": resume}
    grid = InlineGrid(client_app, run_config)
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config
    )
    make_app(observe)(grid, context)


def export_stage(folder: RunFolder, stage: ExportStage, observe: Observer) -> tuple[Artefact, ...]:
    """Runs one export stage on a finished run folder and adds it to the summary."""
    from deploy.export.exporter import export_run

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
        folder.update_summary(status="done", reason=None, artefacts=_told(folder, made))
    return tuple(made)


def _told(folder: RunFolder, made: list[Artefact]) -> list[dict[str, object]]:
    """Returns the artefacts of the summary with new ones in the place of old."""
    known = {told["file"]: told for told in folder.summary().get("artefacts", [])}
    return list({**known, **{artefact.file: asdict(artefact) for artefact in made}}.values())
