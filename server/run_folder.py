"""The run folder: what somebody can open and understand afterwards."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.records import RoundRecord, record_from_json
from shared_models.client_states import FILE_NAME
from shared_models.config import Config, parse_config, to_toml
from shared_models.errors import CheckpointError, InputError
from shared_models.files import is_torn, locked, remove_torn, write_atomic, write_json

UNFINISHED = ".new-"  # what a folder of files that are not measured yet is called


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run folder, and how its files are written and read."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved config: running it does the run again."""
        return self.path / "config.toml"

    @property
    def manifest_file(self) -> Path:
        """Versions, machine, plan, data hashes."""
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        """One line per round."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The last rounds' checkpoints."""
        return self.path / "checkpoints"

    @property
    def model_file(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    @property
    def calibration_file(self) -> Path:
        """In which ranges the values inside the final model lie, as clients told."""
        return self.path / "calibration.json"

    @property
    def summary_file(self) -> Path:
        """What a script wants to know at the end."""
        return self.path / "summary.json"

    @property
    def export(self) -> Path:
        """Artefacts and the reference they are compared with."""
        return self.path / "export"

    @property
    def client_states_file(self) -> Path:
        """What clients keep from round to round, where they keep anything."""
        return self.path / FILE_NAME

    def stage_file(self, stage: str) -> Path:
        """The weights at the end of a stage."""
        return self.path / f"{stage}.safetensors"

    def client_metrics_file(self, stage: str, number: int) -> Path:
        """What clients measured after a round, one entry a client."""
        return self.path / "client_metrics" / f"{stage}-{number:06d}.json"

    def is_new(self) -> bool:
        """Whether nothing is there, or only the first write of a process that was killed."""
        if not self.path.is_dir():
            return not self.path.exists()
        return all(is_torn(path, self.config_file) for path in self.path.iterdir())

    def create(self, config: Config) -> None:
        """Makes a new run folder; `InputError` when it holds something or cannot be written."""
        if not self.is_new():
            raise InputError(
                f"{self.path}: already exists; choose another --out, or add --resume to continue it"
            )
        try:
            write_atomic(self.config_file, to_toml(config).encode())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"{self.path}: cannot be made: {error.strerror}; choose another --out"
            ) from None

    @contextlib.contextmanager
    def held(self, patience_s: float = 1.0) -> Iterator[None]:
        """Keeps other processes out of the folder, and tidies up after one that was killed.

        It waits that long for another one: it may be dying, or only looking whether a run is at
        work. `InputError` when it stays.
        """
        with _lock(self.config_file, patience_s) as free:
            if not free:
                raise InputError(f"{self.path}: another process is working on this run")
            for folder in (self.path, self.checkpoints, self.path / "client_metrics", self.export):
                remove_torn(folder)
            for unfinished in self.export.glob(f"{UNFINISHED}*"):
                shutil.rmtree(unfinished)
            yield

    def require_same(self, config: Config) -> None:
        """Raises `InputError` unless the folder holds a run of exactly this config."""
        mine, theirs = self.config().identity(), config.identity()
        for key in Config.model_fields:
            if mine.get(key) != theirs.get(key):
                raise InputError(
                    f"{self.path}: holds a run whose {key!r} differs from this config; resume it "
                    f"with `wildflower simulate {self.path} --resume`, or choose another --out"
                )

    def config(self) -> Config:
        """Returns the run's config; `InputError` when the folder is not a run folder."""
        if not self.config_file.is_file():
            raise InputError(f"{self.path}: not a run folder: there is no config.toml in it")
        return parse_config(self.config_file.read_text(), str(self.config_file))

    def manifest(self) -> dict[str, Any]:
        """Returns `manifest.json`."""
        found: dict[str, Any] = json.loads(self.manifest_file.read_text())
        return found

    def update_manifest(self, **entries: Any) -> None:
        """Changes entries of `manifest.json`, atomically."""
        write_json(self.manifest_file, {**self.manifest(), **entries})

    def append(self, record: RoundRecord) -> None:
        """Adds a line to `metrics.jsonl` and flushes it."""
        with self.metrics_file.open("a") as file:
            file.write(record.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[RoundRecord]:
        """Returns the rounds so far; a torn last line is passed over."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text().splitlines(keepends=True)
        whole = lines if not lines or lines[-1].endswith("\n") else lines[:-1]
        try:
            return [record_from_json(line) for line in whole]
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self.metrics_file}: damaged: {error}") from None

    def all_records(self) -> list[RoundRecord]:
        """Returns the rounds of all learning stages; `CheckpointError` when one is missing."""
        records = self.records()
        self._require_whole(records, self.config().learning_stages[-1].name)
        return records

    def _require_whole(self, records: Sequence[RoundRecord], until: str) -> None:
        names = [stage.name for stage in self.config().learning_stages]
        for name in names[: names.index(until) + 1]:
            told = [record.round for record in records if record.stage == name]
            missing = set(range(1, max(told, default=1) + 1)) - set(told)
            if missing:
                raise CheckpointError(
                    f"{self.metrics_file}: stage {name!r}, round {min(missing)}, is not in it; "
                    "put back a copy of the whole run folder, or start the run anew"
                )

    def complete_metrics(self, last: RoundRecord) -> None:
        """Makes `metrics.jsonl` end with the checkpoint's round: adds it, drops what is later.

        Raises `CheckpointError` when a round before it is missing.
        """
        records = self.records()
        keys = [(record.stage, record.round) for record in records]
        own = (last.stage, last.round)
        kept = records[: keys.index(own) + 1] if own in keys else [*records, last]
        self._require_whole(kept, last.stage)
        text = "".join(record.to_json() + "\n" for record in kept)
        write_atomic(self.metrics_file, text.encode())

    def restart_metrics(self) -> None:
        """Empties `metrics.jsonl`: nothing that it told is in a checkpoint."""
        self.metrics_file.unlink(missing_ok=True)

    def summary(self) -> dict[str, Any]:
        """Returns `summary.json`, or an empty dict while the run has not finished."""
        if not self.summary_file.exists():
            return {}
        found: dict[str, Any] = json.loads(self.summary_file.read_text())
        return found

    def update_summary(self, **entries: Any) -> None:
        """Changes entries of `summary.json`, atomically; None removes one."""
        changed = {**self.summary(), **entries}
        write_json(self.summary_file, {k: v for k, v in changed.items() if v is not None})


@contextlib.contextmanager
def _lock(path: Path, patience_s: float) -> Iterator[bool]:
    until = time.monotonic() + patience_s
    while True:
        with locked(path) as free:
            if free or time.monotonic() >= until:
                yield free
                return
        time.sleep(0.1)


def new_run_folder(runs: Path, name: str) -> Path:
    """Makes and returns `runs/<name>-<n>` with the first n that is free."""
    for number in itertools.count(1):
        path = runs / f"{name}-{number}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)  # the name is ours from now on
            return path
    raise AssertionError("there is always a next number")
