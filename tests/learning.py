"""Runs of the examples in a few rounds, on real data and through to measured files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.cli import run
from server.evaluation import evaluator_of
from shared_models.config import read_config
from shared_models.datasets.load import load_dataset
from shared_models.errors import DataError
from shared_models.tasks import load_task
from tests.conftest import ROOT

# Of fewer test examples the export gate's hundredth would be one or two.
FEW = ["stages.export.test_examples=1000", "stages.export.latency_runs=20"]


def overrides(stage: str, rounds: int, *more: str) -> list[str]:
    return [f"stages.{stage}.rounds={rounds}", f"evaluate.every={rounds}", *FEW, *more]


def learnt(
    name: str, out: Path, settings: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns what the server measures before the first round and after the last."""
    path = ROOT / "examples" / f"{name}.toml"
    config = read_config(path, settings)
    task = load_task(config.task)
    try:
        load_dataset(config.data.name or task.dataset, config.data.root)
    except DataError as error:
        pytest.skip(f"NO DATA: {error}")
    evaluate = evaluator_of(config, task)
    assert evaluate is not None
    options = [word for setting in settings for word in ("-s", setting)]
    assert run(["simulate", str(path), "--out", str(out), *options]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert all(made["passed"] for made in summary["artefacts"])
    assert {made["format"].split("-")[0] for made in summary["artefacts"]} == {"onnx", "tflite"}
    return evaluate(task.build(config.seed)), summary["stages"][0]["eval"]
