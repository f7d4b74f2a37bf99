"""The examples of texts, large images, attacks and transfer: a few rounds make each model better.

On real data, and through to a measured file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.cli import run
from shared_models.datasets.load import load_dataset
from shared_models.errors import DataError
from tests.conftest import ROOT
from tests.learning import learnt, overrides

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("text-rnn", overrides("train", 4, "plan.trainer=reused")),
        ("text-lstm", overrides("train", 4, "plan.trainer=reused")),
        ("image-cnn-64", overrides("train", 4, "plan.trainer=reused")),
        ("adversarial-mnist", overrides("train", 4, "data.max_examples_per_client=200")),
    ],
)
def test_a_few_rounds_make_it_better(name: str, settings: Sequence[str], tmp_path: Path) -> None:
    before, after = learnt(name, tmp_path / "run", settings)
    assert after["loss"] < before["loss"]
    for metric in set(after) - {"loss"}:
        assert after[metric] > before[metric]


def test_a_play_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = overrides("train", 3, "stages.train.clients_per_round=4", "plan.trainer=reused")
    before, after = learnt("text-generate", tmp_path / "run", settings)
    assert after["accuracy"] > before["accuracy"]
    (tmp_path / "prompt.txt").write_text("To be, or not to be")
    file = tmp_path / "run" / "export" / "model-fp32.tflite"
    capsys.readouterr()
    words = ["predict", str(file), "--input", str(tmp_path / "prompt.txt"), "--generate", "40"]
    assert run([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["text"]) == 40


def test_a_new_head_learns_clothes_on_a_trunk_of_digits(tmp_path: Path) -> None:
    digits = [str(ROOT / "examples" / "mnist-cnn.toml"), "--out", str(tmp_path / "digits")]
    few = ["--engine", "inline", "-s", "stages.train.rounds=5"]
    few += ["-s", "stages.train.clients_per_round=20", "-s", "stages.export.test_examples=1000"]
    try:
        load_dataset("mnist")
    except DataError as error:
        pytest.skip(f"NO MNIST: {error}")
    assert run(["simulate", *digits, *few]) == 0
    settings = overrides("finetune", 4, f'init="{tmp_path / "digits"}"')
    before, after = learnt("transfer-fashion", tmp_path / "run", settings)
    assert after["accuracy"] > before["accuracy"] + 0.3
