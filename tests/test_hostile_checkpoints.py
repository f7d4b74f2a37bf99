"""Damaged files: a checkpoint is read as it was written, or refused with our own error."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from server.checkpoints import (
    Checkpoint,
    _checksum,
    checkpoint_files,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from server.records import RoundRecord, Seconds
from server.state import ServerState
from shared_models.arrays import Arrays, digest, load_arrays, save_arrays, serialize
from shared_models.errors import CheckpointError

# Every example writes over the same file.
many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

RECORD = RoundRecord(
    "train", 3, 2, 2, 0, (), 0.5, {"loss": 1.0}, Seconds(1, 1, 0, 0), 8, 8, 1.0, 0.0
)
STATE = ServerState(
    "train",
    3,
    {"encoder.w": torch.arange(6.0).reshape(2, 3), "head.n": torch.tensor(3)},
    {"velocity": {"encoder.w": torch.ones(2, 3)}},
    {"control": {"encoder.w": torch.zeros(2, 3)}},
)
ORIGINAL = Checkpoint(STATE, RECORD, (1, 2, 5), (2, 5))


def told(checkpoint: Checkpoint) -> list[object]:
    state = checkpoint.state
    arrays = [state.params, *state.optimizer.values(), *state.extras.values()]
    slots = [*state.optimizer, *state.extras]
    about = [state.stage, state.round, checkpoint.record]
    return [*map(digest, arrays), slots, about, checkpoint.population, checkpoint.cohort]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path, 0, ORIGINAL, keep=2)
    (path,) = checkpoint_files(tmp_path)
    return path


def same_or_refused(path: Path) -> None:
    try:
        found = load_checkpoint(path)
    except CheckpointError:
        return
    assert told(found) == told(ORIGINAL)


@many
@given(st.data())
def test_changed_bytes_are_the_same_checkpoint_or_refused(saved: Path, data: st.DataObject) -> None:
    content = serialize_original(saved)
    place = data.draw(st.integers(0, len(content) - 1))
    piece = data.draw(st.binary(max_size=8))
    skip = data.draw(st.sampled_from([0, 1, len(piece), len(content)]))
    saved.write_bytes(content[:place] + piece + content[place + skip :])
    same_or_refused(saved)


def serialize_original(path: Path) -> bytes:
    """Returns the whole file, as examples before this one have left another."""
    save_checkpoint(path.parent, 0, ORIGINAL, keep=2)
    return path.read_bytes()


WORDS = st.sampled_from(["F32", "F64", "I64", "I32", "U8", "BOOL", "BF16", "F8_E4M3", "C64", ""])


@many
@given(st.data())
def test_a_changed_header_is_the_same_checkpoint_or_refused(
    saved: Path, data: st.DataObject
) -> None:
    content = serialize_original(saved)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    changes: dict[str, st.SearchStrategy[object]] = {
        "dtype": WORDS,
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 6, -1, 2**40, 2**63]), max_size=3),
        "data_offsets": st.lists(st.integers(-8, 200), min_size=2, max_size=2),
    }
    for key, values in changes.items():
        if data.draw(st.booleans()):
            header[name][key] = data.draw(values)
    if data.draw(st.booleans()):
        header[data.draw(st.sampled_from(["clients.cohort", "params.x", ""]))] = header.pop(name)
    text = json.dumps(header).encode()
    saved.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    same_or_refused(saved)


@many
@given(st.binary(max_size=100))
@example(b"")
@example(struct.pack("<Q", 2**63) + b"{}")
@example(struct.pack("<Q", 2) + b"{}")
@example(struct.pack("<Q", 20_000) + b"[" * 20_000)
def test_any_bytes_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "00-train-000001.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


@many
@given(st.data())
def test_weights_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    save_arrays(path, STATE.params)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content), 30]))])
    try:
        found = load_arrays(path)
    except CheckpointError:
        return
    assert len(found) <= len(STATE.params)


def resigned(path: Path, change: Callable[[Arrays, dict[str, str]], object]) -> None:
    """Changes a checkpoint and its checksum: what another version, or a forger, would leave."""
    arrays = load_arrays(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    del metadata["sha256"]
    change(arrays, metadata)
    metadata["sha256"] = _checksum(arrays, metadata)
    path.write_bytes(serialize(arrays, metadata))


@pytest.mark.parametrize(
    "change",
    [
        lambda a, _: a.pop("clients.population"),
        lambda a, _: a.update({"clients.cohort": torch.tensor(3)}),
        lambda _, m: m.pop("state"),
        lambda _, m: m.update(state="[1]"),
        lambda _, m: m.update(record="{}"),
        lambda _, m: m.update(record="null"),
        lambda _, m: m.update(record="[" * 100_000),
        lambda _, m: m.update(record=m["record"].replace('"injected": []', '"injected": 3')),
        lambda _, m: m.update(record=m["record"].replace('"round": 3', '"ruond": 3')),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    saved: Path, change: Callable[[Arrays, dict[str, str]], object]
) -> None:
    resigned(saved, change)
    with pytest.raises(CheckpointError, match="not a checkpoint of a run"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        load_latest(saved.parent, lambda _: None)
