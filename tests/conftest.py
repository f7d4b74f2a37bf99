"""What all tests share: one thread, a small run that is real."""

from __future__ import annotations

import shutil
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# For a long look: pytest --hypothesis-profile thorough tests/test_hostile_messages.py
hypothesis.settings.register_profile("thorough", max_examples=5000)

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds how many runs are killed at random; those under Ray are slow."""
    parser.addoption("--chaos-runs", type=int, default=3, help="runs of tests/test_chaos.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives a test of chaos the numbers of its runs."""
    if "chaos_run" in metafunc.fixturenames:
        numbers = range(metafunc.config.getoption("--chaos-runs"))
        marks = {number: [pytest.mark.slow] if number >= 2 else [] for number in numbers}
        runs = [pytest.param(number, marks=marks[number]) for number in numbers]
        metafunc.parametrize("chaos_run", runs)


DIGITS = """
name = "digits"
task = "digits-cnn"

[data]
partition = "iid"
clients = 12

[plan]
trainer = "loop"
block_size = 4

[[stages]]
name = "train"
kind = "train"
rounds = 4
clients_per_round = 10
local_learning_rate = 0.1
server_optimizer = "momentum"
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits run with its export stage done: fp32 and int8, ONNX and TFLite."""
    from deploy.cli import run

    folder = tmp_path_factory.mktemp("finished")
    export = '\n[[stages]]\nname = "export"\nkind = "export"\nlatency_runs = 20\n'
    (folder / "digits.toml").write_text(DIGITS.replace("rounds = 4", "rounds = 15") + export)
    assert run(["simulate", str(folder / "digits.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def exported(finished: Path) -> Path:
    """Its export folder."""
    return finished / "export"


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """The export folder, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "export"))


@pytest.fixture
def digits_toml(tmp_path: Path) -> Path:
    """A config file of four rounds that take a second."""
    path = tmp_path / "digits.toml"
    path.write_text(DIGITS)
    return path
