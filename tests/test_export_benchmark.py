"""The benchmark of the formats: nothing is missing in its table; it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.export import Effort, Lesson, complete, train
from benchmarks.export_table import report
from deploy.edge.runtimes import is_installed
from deploy.export.formats import FORMATS
from shared_models.tasks import load_task


def cell(runtime: str, faster: float) -> dict[str, Any]:
    return {"runtime": runtime, "score": 0.9, "p50_ms": 2.0, "faster": faster}


def row(name: str, size: int, *cells: dict[str, Any], **told: Any) -> dict[str, Any]:
    plain = {"format": name, "default": False, "missing": [], "why_not": ""}
    return {**plain, "size_bytes": size, "cells": list(cells), **told}


def test_the_table_tells_ratios_and_why_a_cell_is_empty() -> None:
    rows = [
        row("tflite-fp32", 1000, cell("litert", 3.0), missing=["tflite-runtime"], default=True),
        row("tflite-int8", 0, why_not="its state stays float"),
        row("unrolled-fp32", 4000, cell("litert", 1.5)),
    ]
    task = {"size_bytes": 2000, "examples": 10, "score": 0.9, "torch_ms": 6.0, "rows": rows}
    told = report({"tasks": {"a-task": task}})
    fused, why_not, _ = told.splitlines()[4:7]
    assert [part.strip() for part in fused.split("|")[1:-1]] == [
        "**tflite-fp32**",
        "1",
        "2x",
        "0.9000, 2 ms, 3x",
        "not installed",
        "not for it",
    ]
    assert "its state stays float" in why_not
    ours = told.splitlines()[-1].split("|")
    assert [part.strip() for part in ours[1:-1]] == ["a-task, tflite-fp32", "litert", "4x", "2x"]


def test_a_lesson_teaches() -> None:
    reference = train(load_task("digits-cnn"), Lesson(steps=200)).reference
    assert (reference.outputs.argmax(1) == reference.targets).mean() > 0.8


@pytest.mark.slow
def test_no_cell_is_silently_missing(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    told = complete(path, ["digits-cnn"], Effort(turns=1, runs=3))
    rows = told["tasks"]["digits-cnn"]["rows"]
    assert [row["format"] for row in rows] == list(FORMATS)
    for row in rows:
        here = [cell["runtime"] for cell in row["cells"]]
        assert row["why_not"] or all(is_installed(name) for name in here)
        assert row["why_not"] or here or row["missing"]
    assert json.loads(path.read_text()) == json.loads(json.dumps(told))
    assert complete(path, ["digits-cnn"], Effort()) == json.loads(path.read_text())
