"""Checkpoints: one safetensors file a round, whole or not there, checked when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from server.records import RoundRecord, record_from_json
from server.state import ServerState
from shared_models.arrays import Arrays, digest, load_arrays, serialize
from shared_models.errors import CheckpointError
from shared_models.files import write_atomic


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round, the round's record, and who there was and who took part.

    `best` are the weights of the best round, where they are kept and it was an earlier one.
    """

    state: ServerState
    record: RoundRecord
    population: tuple[int, ...]
    cohort: tuple[int, ...]
    best: Arrays | None = None

    @property
    def best_params(self) -> Arrays:
        """The weights that the stage would end with now."""
        return self.state.params if self.best is None else self.best


def save_checkpoint(folder: Path, stage_number: int, checkpoint: Checkpoint, keep: int) -> None:
    """Writes the checkpoint atomically, then removes all but the last `keep`."""
    state = checkpoint.state
    arrays = _flatten(checkpoint)
    metadata = {
        "state": json.dumps({"stage": state.stage, "round": state.round}),
        "record": checkpoint.record.to_json(),
        # A file has its arrays by the alphabet; sums over all of them add up in the state's order.
        "order": json.dumps(list(arrays)),
    }
    metadata["sha256"] = _checksum(arrays, metadata)
    path = folder / f"{stage_number:02d}-{state.stage}-{state.round:06d}.safetensors"
    write_atomic(path, serialize(arrays, metadata))
    for old in checkpoint_files(folder)[:-keep]:
        old.unlink(missing_ok=True)


def checkpoint_files(folder: Path) -> list[Path]:
    """Returns the checkpoints of a run, oldest first."""
    return sorted(folder.glob(f"[0-9][0-9]-*-{'[0-9]' * 6}.safetensors"))


def oldest_kept(folder: Path) -> tuple[str, int] | None:
    """Returns the stage and round of the oldest checkpoint: nobody resumes from before it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     for stem in ("00-pre-train-000012", "01-tune-000001"):
    ...         (Path(name) / f"{stem}.safetensors").touch()
    ...     oldest_kept(Path(name))
    ('pre-train', 12)
    """
    for path in checkpoint_files(folder)[:1]:
        stage, _, number = path.stem.partition("-")[2].rpartition("-")
        return stage, int(number)
    return None


def load_latest(folder: Path, notice: Callable[[str], None]) -> Checkpoint | None:
    """Returns the newest whole checkpoint, or None when there is none.

    A damaged one is passed over, and `notice` is told; when all are damaged that is an error.
    """
    files = checkpoint_files(folder)
    for path in reversed(files):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            notice(f"{error}; going back to the checkpoint before it")
    if files:
        raise CheckpointError(f"{folder}: every checkpoint is damaged; start the run anew")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads one checkpoint; raises `CheckpointError` when it is damaged."""
    arrays = load_arrays(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.pop("sha256", None) != _checksum(arrays, metadata):
        raise CheckpointError(f"{path}: damaged: its content does not match its checksum")
    try:
        about = json.loads(metadata["state"])
        record = record_from_json(metadata["record"])
        arrays = {name: arrays[name] for name in json.loads(metadata["order"])}
        params = _under("params", arrays)
        optimizer, extras = (_slots(_under(kind, arrays)) for kind in ("optimizer", "extras"))
        state = ServerState(about["stage"], about["round"], params, optimizer, extras)
        population, cohort = (
            tuple(arrays[f"clients.{name}"].tolist()) for name in ("population", "cohort")
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of a run: {error}") from None
    best = _under("best", arrays) or None
    return Checkpoint(state, record, population, cohort, best)


def _checksum(arrays: Arrays, metadata: dict[str, str]) -> str:
    content = json.dumps([digest(arrays), sorted(metadata.items())])
    return hashlib.sha256(content.encode()).hexdigest()


def _flatten(checkpoint: Checkpoint) -> Arrays:
    state = checkpoint.state
    arrays = {f"params.{name}": tensor for name, tensor in state.params.items()}
    # Cloned: what never moves is in both, and safetensors refuses two names for the same memory.
    arrays |= {f"best.{name}": tensor.clone() for name, tensor in (checkpoint.best or {}).items()}
    for kind, slots in (("optimizer", state.optimizer), ("extras", state.extras)):
        for slot, own in slots.items():
            arrays |= {f"{kind}.{slot}.{name}": tensor for name, tensor in own.items()}
    arrays["clients.population"] = torch.tensor(checkpoint.population, dtype=torch.int64)
    arrays["clients.cohort"] = torch.tensor(checkpoint.cohort, dtype=torch.int64)
    return arrays


def _under(prefix: str, arrays: Arrays) -> Arrays:
    own = f"{prefix}."
    return {name.removeprefix(own): t for name, t in arrays.items() if name.startswith(own)}


def _slots(flat: Arrays) -> dict[str, Arrays]:
    slots = dict.fromkeys(name.partition(".")[0] for name in flat)
    return {slot: _under(slot, flat) for slot in slots}
