"""Checkpoints: whole or not there, checked, and passed over when damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server.checkpoints import Checkpoint, checkpoint_files, load_latest, save_checkpoint
from server.records import RoundRecord, Seconds
from server.state import ServerState
from shared_models.arrays import digest
from shared_models.errors import CheckpointError


def checkpoint(number: int) -> Checkpoint:
    params = {"encoder.w": torch.full((3,), float(number)), "head.n": torch.tensor(number)}
    optimizer = {"velocity": {"encoder.w": torch.randn(3)}}
    record = RoundRecord(
        "train", number, 2, 2, 0, (), 0.5, {"loss": 1.0}, Seconds(1, 1, 0, 0), 8, 8, 1.0, 0.0
    )
    return Checkpoint(ServerState("train", number, params, optimizer), record, (1, 2, 5), (2, 5))


def save(folder: Path, *numbers: int, keep: int = 2) -> None:
    for number in numbers:
        save_checkpoint(folder, 0, checkpoint(number), keep)


def silent(text: str) -> None:
    raise AssertionError(f"nothing should be said, but: {text}")


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    original = checkpoint(3)
    save_checkpoint(tmp_path, 0, original, keep=2)
    again = load_latest(tmp_path, silent)
    assert again is not None
    assert digest(again.state.params) == digest(original.state.params)
    assert digest(again.state.optimizer["velocity"]) == digest(original.state.optimizer["velocity"])
    assert (again.record, again.population, again.cohort) == (original.record, (1, 2, 5), (2, 5))


def test_what_the_objective_keeps_and_the_best_weights_come_back_too(tmp_path: Path) -> None:
    plain = checkpoint(3)
    extras = {"control": {"encoder.w": torch.randn(3)}, "mu": {"value": torch.tensor(0.25)}}
    best = {"encoder.w": torch.randn(3), "head.n": plain.state.params["head.n"]}
    save_checkpoint(
        tmp_path, 0, replace(plain, state=replace(plain.state, extras=extras), best=best), 2
    )
    again = load_latest(tmp_path, silent)
    assert again is not None
    torch.testing.assert_close(again.state.extras, extras, rtol=0, atol=0)
    torch.testing.assert_close(again.best_params, best, rtol=0, atol=0)


def test_without_earlier_weights_a_rounds_own_are_its_best(tmp_path: Path) -> None:
    save(tmp_path, 3)
    again = load_latest(tmp_path, silent)
    assert again is not None
    assert again.best is None
    assert again.best_params is again.state.params


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4)
    assert [path.name for path in checkpoint_files(tmp_path)] == [
        "00-train-000003.safetensors",
        "00-train-000004.safetensors",
    ]
    assert load_latest(tmp_path / "none", silent) is None


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def change_the_round(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'round\\": 2', b'round\\": 1'))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        change_the_round,
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b""),
    ],
    ids=["tampered", "backdated", "torn", "empty"],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: object) -> None:
    save(tmp_path, 1, 2)
    damage(checkpoint_files(tmp_path)[-1])  # type: ignore[operator]
    said: list[str] = []
    found = load_latest(tmp_path, said.append)
    assert found is not None
    assert found.state.round == 1
    assert "00-train-000002" in said[0]


def test_when_all_are_damaged_the_run_does_not_silently_start_anew(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in checkpoint_files(tmp_path):
        flip_a_byte(path)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        load_latest(tmp_path, lambda _: None)
