"""The benchmark of the formats: nothing is missing in its table; it goes on where it stopped."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import export
from benchmarks.command import RESULTS
from benchmarks.export import Effort, complete
from benchmarks.export_models import LESSONS, Lesson, train
from benchmarks.export_table import page, report
from deploy.edge.runtimes import is_installed, runtimes_for
from deploy.export.formats import FORMATS
from shared_models.tasks import TASKS, load_task
from tests.conftest import ROOT


def cell(runtime: str, faster: float) -> dict[str, Any]:
    return {"runtime": runtime, "score": 0.9, "p50_ms": 2.0, "faster": faster}


def row(name: str, size: int, *cells: dict[str, Any], **told: Any) -> dict[str, Any]:
    plain = {"format": name, "default": False, "missing": [], "why_not": "", "notes": ""}
    return {**plain, "size_bytes": size, "cells": list(cells), **told}


def test_the_table_tells_ratios_and_why_a_cell_is_empty() -> None:
    rows = [
        row("tflite-fp32", 1000, cell("litert", 3.0), missing=["tflite-runtime"], default=True),
        row("tflite-dynamic", 500, cell("litert", 6.0)),
        row("tflite-int8", 0, why_not="its state stays float"),
        row("unrolled-fp32", 4000, cell("litert", 1.5)),
    ]
    task = {"size_bytes": 2000, "examples": 10, "metric": "accuracy"}
    task |= {"score": 0.9, "torch_ms": 6.0, "rows": rows}
    told = report({"tasks": {"a-task": task}})
    looped, _, why_not, _ = told.splitlines()[6:10]
    assert [part.strip() for part in looped.split("|")[1:-1]] == [
        "**tflite-fp32**",
        "1",
        "2x",
        "0.9000, 2 ms, 3x",
        "not installed",
        "not for it",
    ]
    assert "its state stays float" in why_not
    assert "a-task, tflite-dynamic" in told
    rows[1]["notes"] = "unrolled over time, which makes it large"
    assert "a-task, tflite-dynamic" not in report({"tasks": {"a-task": task}})
    gains = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()[-2:]]
    assert gains == [
        ["a-task, tflite-fp32, unrolled-fp32", "litert", "4x", "2x"],
        ["a-task, tflite-dynamic, unrolled-fp32", "litert", "8x", "4x"],
    ]


def test_a_lesson_teaches() -> None:
    reference = train(load_task("digits-cnn"), Lesson(steps=200)).reference
    assert (reference.outputs.argmax(1) == reference.targets).mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_taught_and_asked(name: str) -> None:
    trained = train(load_task(name), Lesson(steps=1, examples=20, batch_size=4))
    assert len(trained.reference.x) == 20
    assert np.isfinite(trained.reference.outputs).all()
    assert trained.calibration.shape[1:] == trained.ships.input.shape
    assert np.abs(trained.reference.outputs - trained.reference.outputs[0]).max() > 0


def test_lessons_are_of_tasks_that_there_are() -> None:
    assert LESSONS.keys() <= TASKS.keys()


def test_the_page_is_that_of_the_newest_result_and_has_every_model() -> None:
    told = json.loads(max(RESULTS.glob("*-export.json")).read_text())
    assert list(told["tasks"]) == list(TASKS)
    assert (ROOT / "docs" / "export-table.md").read_text() == page(told)
    for task in told["tasks"].values():
        names = [row["format"] for row in task["rows"] if not row["format"].startswith("unrolled")]
        assert names == list(FORMATS)
        assert not any(row["missing"] for row in task["rows"])


@pytest.mark.slow
def test_no_cell_is_silently_missing(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    told = complete(path, ["digits-cnn"], Effort(turns=1, runs=3))
    rows = told["tasks"]["digits-cnn"]["rows"]
    assert [row["format"] for row in rows] == list(FORMATS)
    for row in rows:
        here = [cell["runtime"] for cell in row["cells"]]
        if row["why_not"]:
            assert row["format"].startswith("tflite-stream")  # of a CNN all others can be made
            assert (here, row["missing"]) == ([], ())
        else:
            runtimes = runtimes_for(Path(FORMATS[row["format"]].file))
            assert here == [name for name in runtimes if is_installed(name)]
            assert row["missing"] == tuple(n for n in runtimes if not is_installed(n))
    assert json.loads(path.read_text()) == json.loads(json.dumps(told))


def test_without_a_name_what_is_missing_is_measured_with_one_that_one_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = itertools.count()
    monkeypatch.setattr(export, "measure", lambda *_: {"number": next(counted)})
    path = tmp_path / "result.json"
    assert complete(path, ["mnist-gan"], Effort())["tasks"].keys() == {"mnist-gan"}
    told = complete(path, [], Effort())["tasks"]
    assert list(told) == list(TASKS)
    assert told["mnist-gan"]["number"] == 0
    again = complete(path, ["mnist-gan"], Effort())["tasks"]
    assert again["mnist-gan"]["number"] == len(TASKS)
    assert {name for name in TASKS if again[name] != told[name]} == {"mnist-gan"}
    assert json.loads(path.read_text())["tasks"] == again
