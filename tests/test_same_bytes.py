"""Every trainer gives the same bytes: killed and resumed, and under Ray."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from clients.kernels.compiled import find_compiler
from shared_models.files import sha256_of
from shared_models.tasks import load_task
from tests.test_runs import KILL_AT_WRITE, simulate, wildflower

CONFIG = """
task = "{task}"
[data]
name = "{data}"
partition = "natural"
[evaluate]
data = "none"
[plan]
trainer = "{trainer}"
block_size = 4
dtype = "{dtype}"
compile = {compiled}
[[stages]]
name = "train"
kind = "train"
rounds = 3
clients_per_round = 10
local_epochs = 2
batch_size = 4
local_learning_rate = 0.1
server_optimizer = "momentum"
"""
CASES = [
    ("mnist-2nn", "low_rank", "float64", "false"),
    ("mnist-2nn", "loop", "float64", "false"),
    ("digits-cnn", "reused", "float32", "false"),
    ("digits-cnn", "fused", "float32", "false"),
    ("digits-cnn", "vectorised", "float64", "false"),
    ("mnist-2nn", "low_rank", "float32", "false"),
    ("watch-lstm", "fused", "float32", "true"),
]
AFTER_ROUND_1 = 3  # files: config, manifest, the first checkpoint


def written(folder: Path, case: tuple[str, str, str, str]) -> Path:
    """Writes a config and its data: 13 clients who own 1 to 13 examples."""
    task, trainer, dtype, compiled = case
    owner = np.repeat(np.arange(13), np.arange(1, 14))
    rng, shape = np.random.default_rng(0), load_task(task).input.shape
    x = rng.random((len(owner), *shape)).astype(np.float32)
    np.savez(folder / "own.npz", x=x, y=rng.integers(7, size=len(owner)), client_id=owner)
    text = CONFIG.format(
        task=task, data=folder / "own.npz", trainer=trainer, dtype=dtype, compiled=compiled
    )
    (folder / "run.toml").write_text(text)
    return folder / "run.toml"


@pytest.mark.parametrize(
    "case",
    [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])],
    ids="-".join,
)
def test_resumed_and_under_ray_the_bytes_are_the_same(
    case: tuple[str, str, str, str], tmp_path: Path
) -> None:
    if case[3] == "true" and find_compiler() is None:
        pytest.skip("there is no C compiler here")
    config = written(tmp_path, case)
    alone = simulate(config, tmp_path / "alone")
    killed = tmp_path / "killed"
    first = KILL_AT_WRITE.format(place=AFTER_ROUND_1, before=False)
    done = wildflower("simulate", config, "--out", killed, first=first)
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = wildflower("simulate", config, "--out", killed, "--resume")
    assert done.returncode == 0, done.stderr
    assert sha256_of(killed / "model.safetensors") == alone
    done = wildflower("simulate", config, "--out", tmp_path / "ray", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "ray" / "model.safetensors") == alone
