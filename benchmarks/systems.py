"""The systems: how each is started on a workload, and what it left behind is read."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.job import FIRST_CLIENT, Job, read_told, write_job
from benchmarks.process_tree import Watched, watch
from benchmarks.workloads import (
    BATCH_SIZE,
    LEARNING_RATE,
    SEED,
    STAGE,
    Workload,
    cohorts_of,
    data_of,
    split_of,
)
from server.run_folder import RunFolder
from shared_models.arrays import Arrays, load_arrays
from shared_models.config import Config, Evaluate, TrainStage, parse_config, to_toml
from shared_models.datasets.load import load_task_data
from shared_models.errors import InputError, did_you_mean
from shared_models.tasks import load_task

ROOT = Path(__file__).parent.parent
PFL_PYTHON = ROOT / ".venv-pfl" / "bin" / "python"
WORKERS = 2
# Nobody reaches out for news while it is measured.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(ROOT),
}


@dataclass(frozen=True)
class Asked:
    """One run: a workload, how many rounds of it, and changes of Wildflower's config."""

    workload: Workload
    rounds: int
    changes: tuple[str, ...] = ()
    limit_s: float = 1800.0


@dataclass(frozen=True)
class Ran:
    """What a run left: `round_ends` and `first_client` in seconds since the epoch."""

    watched: Watched
    round_ends: tuple[float, ...]
    first_client: float | None
    weights: Arrays
    versions: Mapping[str, str]
    settings: Mapping[str, Any]


def find_system(name: str) -> Callable[[Asked, Path], Ran]:
    """Returns what runs a system in an empty folder; `InputError` when there is none."""
    if name not in SYSTEMS:
        raise InputError(f"system {name!r} does not exist; {did_you_mean(name, SYSTEMS)}")
    return SYSTEMS[name]


def run_system(name: str, asked: Asked) -> Ran:
    """Runs a system in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        return find_system(name)(asked, Path(folder))


def wildflower_command(
    config: Path, out: Path, engine: str, changes: Sequence[str] = ()
) -> list[str]:
    """Returns `wildflower simulate` as a user would type it, with two workers if it has workers."""
    options = ["--workers", str(WORKERS)] if engine == "ray" else []
    sets = [part for change in (f"engine={engine}", *changes) for part in ("-s", change)]
    simulate = [sys.executable, "-m", "deploy", "simulate", str(config), "--out", str(out)]
    return [*simulate, *options, *sets]


def _wildflower(engine: str) -> Callable[[Asked, Path], Ran]:
    def run(asked: Asked, folder: Path) -> Ran:
        config, out = folder / "config.toml", folder / "run"
        config.write_text(to_toml(wildflower_config(asked)))
        command = wildflower_command(config, out, engine, asked.changes)
        watched = watch(command, folder / "log", ENVIRONMENT, asked.limit_s)
        return _read_run(RunFolder(out), watched)

    return run


def wildflower_config(asked: Asked) -> Config:
    """Returns the config that a user would write for the workload; nothing is evaluated."""
    workload = asked.workload
    stage = TrainStage(
        name=STAGE,
        kind="train",
        rounds=asked.rounds,
        clients_per_round=workload.cohort,
        local_epochs=1,
        batch_size=BATCH_SIZE,
        local_learning_rate=LEARNING_RATE,
    )
    config = Config(
        name=workload.name,
        seed=SEED,
        task=workload.task,
        data=data_of(workload),
        evaluate=Evaluate(data="none", every=asked.rounds + 1),
        stages=(stage,),
    )
    return parse_config(to_toml(config), source=workload.name)


def _read_run(folder: RunFolder, watched: Watched) -> Ran:
    manifest = folder.manifest()
    lines = folder.metrics_file.read_text().splitlines()
    return Ran(
        watched,
        tuple(json.loads(line)["time"] for line in lines),
        None,  # a run folder tells rounds, not clients
        load_arrays(folder.model_file),
        manifest["versions"],
        {"engine": manifest["engine"], "plan": manifest["plan"], "commit": manifest["git_commit"]},
    )


def _peer(python: Path, module: str) -> Callable[[Asked, Path], Ran]:
    def run(asked: Asked, folder: Path) -> Ran:
        if not python.exists():
            raise InputError(f"{python}: is missing; run `make bench-env`")
        prepare(asked, folder)
        command = [str(python), "-m", module, str(folder)]
        watched = watch(command, folder / "log", ENVIRONMENT, asked.limit_s)
        told, first = read_told(folder), folder / FIRST_CLIENT
        return Ran(
            watched,
            told.round_ends,
            first.stat().st_mtime,
            load_arrays(folder / "final.safetensors"),
            told.versions,
            told.settings,
        )

    return run


def prepare(asked: Asked, folder: Path) -> None:
    """Writes a peer's job: the same clients, cohorts and initial weights that Wildflower has."""
    workload = asked.workload
    task = load_task(workload.task)
    dataset = load_task_data(task, data_of(workload).name)
    split = split_of(workload, dataset)
    order = np.concatenate([split.indices(client) for client in split.client_ids.tolist()])
    job = Job(
        task=workload.task,
        workers=WORKERS,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        bounds=(0, *np.cumsum(split.sizes()).tolist()),
        cohorts=cohorts_of(workload, asked.rounds),
    )
    x = task.input.prepare(np.asarray(dataset.train.x[order]))
    write_job(folder, job, (x, dataset.train.y[order]), task.build(SEED))


_OWN = Path(sys.executable)
SYSTEMS: dict[str, Callable[[Asked, Path], Ran]] = {
    "wildflower": _wildflower("ray"),  # two workers
    "wildflower-inline": _wildflower("inline"),  # one process
    "floor": _peer(_OWN, "benchmarks.floor"),
    "pfl": _peer(PFL_PYTHON, "benchmarks.pfl_peer"),
    "flower": _peer(_OWN, "benchmarks.flower_peer"),
}
