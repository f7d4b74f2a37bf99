"""What is measured: the workloads, and the data that every system gets alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from clients.partitions import Partition, partition
from server.sampling import sample_cohort
from shared_models.config import Data
from shared_models.datasets.dataset import Dataset, Split
from shared_models.datasets.fetch import cache_folder
from shared_models.datasets.load import load_dataset
from shared_models.errors import InputError, did_you_mean
from shared_models.randomness import generator

SEED = 0
LEARNING_RATE = 0.1
BATCH_SIZE = 10
STAGE = "train"
WATCH_CLIENTS = 200
WATCH_PER_CLIENT = 20


@dataclass(frozen=True)
class Workload:
    """One problem and its split; each client trains one epoch a round, batches of ten.

    `rounds` is enough for a median; `fewer` names systems for which it would take too long.
    """

    name: str
    task: str
    clients: int
    cohort: int
    rounds: int
    fewer: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def rounds_of(self, system: str) -> int:
        """Returns how many rounds a system runs if nobody asks for a number."""
        return self.fewer.get(system, self.rounds)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("W1", "mnist-2nn", 1000, 1000, 10, MappingProxyType({"flower": 4})),
        Workload("W1-100", "mnist-2nn", 1000, 100, 20),
        Workload("W2", "mnist-cnn", 1000, 100, 20),
        Workload("W3", "mnist-cnn-mcmahan", 100, 10, 10),
        Workload("W4", "watch-lstm", WATCH_CLIENTS, 100, 20),
    )
}
TINY = Workload("tiny", "digits-cnn", 12, 10, 3)  # seconds: for the tests and a first try
_ALL = {**WORKLOADS, TINY.name: TINY}


def find_workload(name: str) -> Workload:
    """Returns a workload by name; `InputError` when there is none."""
    if name not in _ALL:
        raise InputError(f"workload {name!r} does not exist; {did_you_mean(name, _ALL)}")
    return _ALL[name]


def data_of(workload: Workload) -> Data:
    """Returns the data table of the workload's config: an IID split over its clients."""
    name = str(shuffled_watch()) if workload.task == "watch-lstm" else None
    return Data(name=name, partition="iid", clients=workload.clients)


def split_of(workload: Workload, dataset: Dataset) -> Partition:
    """Returns who owns which training examples: what Wildflower itself would deal out."""
    return partition(dataset.train, data_of(workload), SEED)


def cohorts_of(workload: Workload, rounds: int) -> tuple[tuple[int, ...], ...]:
    """Returns the clients of every round: those that Wildflower itself would draw."""
    ids = range(workload.clients)
    return tuple(
        sample_cohort(ids, workload.cohort, SEED, (STAGE, number, 0))
        for number in range(1, rounds + 1)
    )


def shuffled_watch() -> Path:
    """Returns an `.npz` of the watch's windows without regard to whose they are; made once.

    4,000 windows train, the other 677 test: the split of a speed test, not of a claim about people.
    """
    path = cache_folder() / "benchmarks" / "watch-shuffled.npz"
    if not path.exists():
        _write_npz(path, shuffled(load_dataset("watch"), WATCH_CLIENTS * WATCH_PER_CLIENT))
    return path


def shuffled(dataset: Dataset, examples: int) -> Dataset:
    """Mixes both splits of a dataset and cuts them again: `examples` train, the others test."""
    splits = [split for split in (dataset.train, dataset.test) if split is not None]
    x = np.concatenate([split.x[np.arange(len(split))] for split in splits])
    y = np.concatenate([split.y for split in splits])
    order = generator(SEED, "benchmark", dataset.name).permutation(len(y))
    train, test = order[:examples], order[examples:]
    return Dataset(dataset.name, Split(x[train], y[train]), Split(x[test], y[test]))


def _write_npz(path: Path, dataset: Dataset) -> None:
    test = dataset.test
    assert test is not None  # noqa: S101 - `shuffled` has just cut one
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    np.savez(
        temporary,
        x=np.asarray(dataset.train.x),
        y=dataset.train.y,
        x_test=np.asarray(test.x),
        y_test=test.y,
    )
    temporary.replace(path)
