"""What a peer is given and what it hands back: plain files in a folder, read without Wildflower.

    job.json             the task, its numbers, the cohort of every round
    x.npy, y.npy         model input in float32 and labels, client after client
    start.safetensors    the initial weights
    told.json            from the peer: when the rounds ended, versions, settings
    first-client         from the peer: made when the first client has trained; its time counts
    final.safetensors    from the peer: the weights at the end

A peer's environment needs numpy, torch and safetensors to use this module, nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared_models.arrays import Arrays, load_arrays, save_arrays
from shared_models.tasks import load_task

FIRST_CLIENT = "first-client"


@dataclass(frozen=True)
class Job:
    """One run of one workload; client `k` owns the examples `bounds[k]` to `bounds[k + 1]`."""

    task: str
    workers: int
    learning_rate: float
    batch_size: int
    bounds: tuple[int, ...]
    cohorts: tuple[tuple[int, ...], ...]

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return len(self.bounds) - 1


@dataclass(frozen=True)
class Told:
    """What a peer tells: `round_ends` in seconds since the epoch, one of each round."""

    round_ends: tuple[float, ...]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]


def write_job(folder: Path, job: Job, examples: tuple[Any, Any], start: Arrays) -> None:
    """Writes a job with its examples `(x, y)` and its initial weights."""
    x, y = examples
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    save_arrays(folder / "start.safetensors", start)


def read_job(folder: Path) -> Job:
    """Reads what `write_job` wrote."""
    values = json.loads((folder / "job.json").read_text())
    cohorts = tuple(tuple(cohort) for cohort in values["cohorts"])
    return Job(**{**values, "bounds": tuple(values["bounds"]), "cohorts": cohorts})


def read_clients(folder: Path, job: Job) -> list[tuple[Tensor, Tensor]]:
    """Returns `(x, y)` of every client: views into memory that the processes share."""
    # "c" maps the file for reading; torch does not take what it could not write to.
    x, y = (torch.from_numpy(np.load(folder / name, mmap_mode="c")) for name in ("x.npy", "y.npy"))
    spans = [slice(*job.bounds[k : k + 2]) for k in range(job.clients)]
    return [(x[span], y[span]) for span in spans]


def make_model(folder: Path, job: Job) -> nn.Module:
    """Returns the task's model with the initial weights."""
    model = load_task(job.task).model()
    model.load_state_dict(load_arrays(folder / "start.safetensors"))
    return model


def batches(x: Tensor, y: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Returns one epoch in the order of the data, which the IID deal has shuffled already."""
    return zip(torch.split(x, size), torch.split(y, size), strict=True)


@functools.cache  # later calls must cost nothing: they are in the loop that is measured
def first_client_trained(folder: Path) -> None:
    """Tells that a client has trained; only the first call of the first process counts."""
    with contextlib.suppress(FileExistsError):
        (folder / FIRST_CLIENT).touch(exist_ok=False)


def tell(folder: Path, told: Told, weights: Arrays) -> None:
    """Writes what the peer hands back."""
    save_arrays(folder / "final.safetensors", weights)
    (folder / "told.json").write_text(json.dumps(asdict(told)))


def read_told(folder: Path) -> Told:
    """Reads what the peer has told."""
    values = json.loads((folder / "told.json").read_text())
    return Told(**{**values, "round_ends": tuple(values["round_ends"])})


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of Python and of packages in the environment of this process."""
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}
