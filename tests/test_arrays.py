"""Named arrays: roles, algebra, bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from shared_models.arrays import (
    add,
    digest,
    global_norm,
    load_arrays,
    roles_of,
    save_arrays,
    subtract,
    with_role,
)
from shared_models.errors import CheckpointError


def test_roles_follow_from_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    roles = roles_of(model)
    assert roles["0.weight"] == roles["1.bias"] == "trainable"
    assert roles["1.running_mean"] == roles["1.running_var"] == "averaged"
    assert roles["1.num_batches_tracked"] == "carried"


def test_arrays_of_a_role_come_in_the_models_order() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    shuffled = dict(reversed(model.state_dict().items()))
    assert list(with_role(shuffled, roles_of(model), "trainable")) == list(model.state_dict())


def test_adding_a_difference_restores_the_minuend() -> None:
    left, right = {"w": torch.randn(5).double()}, {"w": torch.randn(5).double()}
    torch.testing.assert_close(add(right, subtract(left, right)), left)


def test_norm_is_over_all_arrays_together() -> None:
    assert float(global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})) == 5.0
    assert float(global_norm({})) == 0.0


def test_digest_depends_on_values_and_names_not_on_order() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    assert digest({"a": a, "b": b}) == digest({"b": b, "a": a})
    assert digest({"a": a, "b": b}) != digest({"a": b, "b": a})
    assert digest({"a": a}) != digest({"a": a.double()})


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"encoder.w": torch.randn(2, 3), "count": torch.tensor(7)}
    save_arrays(tmp_path / "x.safetensors", arrays)
    assert digest(load_arrays(tmp_path / "x.safetensors")) == digest(arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_truncated_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_arrays(path, {"w": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load_arrays(path)
