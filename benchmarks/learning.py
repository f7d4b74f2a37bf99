"""Runs whose accuracy is wanted, not their speed: several at a time, each kept as it ends.

A file holds what is done, so that a benchmark that was interrupted goes on. Accuracies depend
neither on how many run at a time nor on what else the machine does.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.machine import machine
from deploy.simulate import open_grid, simulate
from server.run_folder import RunFolder
from shared_models.config import Config
from shared_models.errors import CheckpointError, InputError, RoundError
from shared_models.files import write_json


@dataclass(frozen=True)
class Curve:
    """A run's accuracy after each round; `broke` is why it ended before its last one."""

    accuracy: tuple[float, ...]
    broke: str | None = None
    most_injected: int = 0
    """The most clients of one round that suffered an injected fault."""

    def at_end(self, rounds: int) -> float:
        """Returns the mean accuracy of the last rounds; 0 when the run broke off."""
        return 0.0 if self.broke else sum(self.accuracy[-rounds:]) / rounds


@dataclass(frozen=True)
class Kept:
    """A results file: what was asked of all runs, and the curves of those that are done."""

    path: Path
    protocol: Mapping[str, Any]
    curves: Mapping[str, Curve]

    def with_curve(self, name: str, curve: Curve) -> Kept:
        """Returns the file with one more curve in it."""
        return Kept(self.path, self.protocol, {**self.curves, name: curve})

    def write(self, **told: Any) -> None:
        """Writes the file, with what else is told."""
        curves = {name: asdict(self.curves[name]) for name in sorted(self.curves)}
        own = {"protocol": dict(self.protocol), "machine": machine(), **told, "curves": curves}
        write_json(self.path, own)


def open_kept(path: Path, protocol: Mapping[str, Any]) -> Kept:
    """Returns what a results file holds; `InputError` when it is of other runs than these."""
    if not path.exists():
        return Kept(path, protocol, {})
    found = json.loads(path.read_text())
    if found.get("protocol") != json.loads(json.dumps(dict(protocol))):
        raise InputError(f"{path}: holds runs of another protocol; choose another --out")
    return Kept(path, protocol, {name: _curve(own) for name, own in found["curves"].items()})


def _curve(told: Mapping[str, Any]) -> Curve:
    return Curve(**{**told, "accuracy": tuple(told["accuracy"])})


def learn(config: Config, keep: Path | None = None) -> Curve:
    """Runs a config in this process, into a folder that is thrown away.

    `keep`: a file that gets what the first stage ended with, if it ended.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder, broke = RunFolder(Path(name) / "run"), None
        try:
            with open_grid(config) as grid:
                simulate(config, folder.path, lambda _: None, grid, resume=False)
        except (RoundError, CheckpointError) as error:  # it diverged, or nobody was usable
            broke = str(error)
        ended = folder.stage_file(config.stages[0].name)
        if keep is not None and ended.exists():
            shutil.copyfile(ended, keep)
        records = folder.records()
    evals = [record.eval for record in records if record.eval]
    # A stage without labels has none.
    told = tuple(round(found["accuracy"], 4) for found in evals if "accuracy" in found)
    return Curve(told, broke, max((len(record.injected) for record in records), default=0))


def learn_all(
    wanted: Mapping[str, Config],
    kept: Kept,
    processes: int,
    tell: Callable[[str], None],
    keep: Mapping[str, Path] = MappingProxyType({}),
) -> Kept:
    """Returns `kept` with a curve of each run that is wanted; runs those that are missing.

    `keep`: files that get what first stages ended with, by the run's name.
    """
    missing = {
        name: (config, keep.get(name)) for name, config in wanted.items() if name not in kept.curves
    }
    for name, curve in _learned(missing, processes):
        kept = kept.with_curve(name, curve)
        kept.write()
        tell(f"{name}: {curve.broke or f'accuracy {curve.accuracy[-1]:.4f}'}")
    return kept


def _learned(
    wanted: Mapping[str, tuple[Config, Path | None]], processes: int
) -> Iterator[tuple[str, Curve]]:
    """Yields each run's curve when it ends."""
    if processes == 1 or len(wanted) < 2:
        yield from ((name, learn(*own)) for name, own in wanted.items())
        return
    # Spawned: a process that has run torch's threads cannot be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        running = {pool.submit(learn, *own): name for name, own in wanted.items()}
        for done in as_completed(running):
            yield running[done], done.result()
