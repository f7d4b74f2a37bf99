"""Files whose ranges clients told: tensors are matched to values, and the gate passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import calibration as benchmark
from deploy.cli import run
from deploy.edge.artefact import load_artefact
from deploy.export.formats import converted, onnx_int8
from deploy.export.formats.matching import Opened, Origin, matched, probes
from deploy.export.formats.onnx_values import open_onnx
from deploy.export.formats.source import Source
from deploy.export.formats.tflite_values import open_tflite
from shared_models.errors import ExportError
from shared_models.ranges import Range, Ranges, ranges_of, traced, values_of
from shared_models.task import Task
from shared_models.tasks import load_task
from tests.conftest import DIGITS

pytestmark = pytest.mark.filterwarnings("ignore")  # the converters' own
STAGES = (
    '\n[[stages]]\nkind = "calibrate"\n'
    '\n[[stages]]\nkind = "export"\nquantize = ["int8"]\nlatency_runs = 20\n'
)


def examples(task: Task) -> NDArray[np.float32]:
    """Input unlike the probes: so that a tensor that was matched wrongly has a wrong range."""
    shape = (20, *task.input.shape)
    return (3.0 * np.random.default_rng(5).random(shape) - 1.0).astype(np.float32)


def sources(task: Task, workshop: Path) -> tuple[Source, Source]:
    """One model, calibrated by examples, and by the ranges that torch has on them."""
    model, x = task.model(1).eval(), examples(task)
    told = ranges_of(values_of(traced(model), torch.from_numpy(x)))
    central = Source(model, x, workshop)
    return central, replace(central, calibration=probes(task.input), ranges=told)


@pytest.mark.parametrize("name", ["digits-cnn", "mnist-2nn", "watch-cnn"])
def test_matched_ranges_are_those_that_the_tflite_quantizer_measures(
    name: str, tmp_path: Path
) -> None:
    central, told = sources(load_task(name), tmp_path)
    path, recipe = converted.convert(central), converted.full_int8()
    measured = converted._ranges(path, recipe, central)
    found = converted._ranges(path, recipe, told)
    assert set(found) == set(measured)
    for tensor, own in measured.items():
        for end in ("min", "max"):
            np.testing.assert_allclose(found[tensor][end], own[end], rtol=1e-4, atol=1e-4)
            assert found[tensor][end].shape == own[end].shape


@pytest.mark.parametrize("name", ["digits-cnn", "mnist-2nn", "watch-cnn"])
def test_matched_ranges_are_those_that_onnx_runtime_sees(name: str, tmp_path: Path) -> None:
    central, told = sources(load_task(name), tmp_path)
    path = onnx_int8.prepared(central)
    real = open_onnx(path, central.calibration)
    wanted = [key for key, own in real.tensors.items() if own.dtype == np.float32]
    assert told.ranges is not None
    opened = open_onnx(path, told.calibration)
    found = matched(told.model, told.calibration, opened, told.ranges, wanted)
    for tensor, own in found.items():
        assert own.low == pytest.approx(float(real.tensors[tensor].min()), rel=1e-4, abs=1e-4)
        assert own.high == pytest.approx(float(real.tensors[tensor].max()), rel=1e-4, abs=1e-4)


def test_every_tensor_of_digits_holds_a_value_of_its_own(tmp_path: Path) -> None:
    task = load_task("digits-cnn")
    central, told = sources(task, tmp_path)
    opened = open_tflite(converted.convert(central), told.calibration)
    assert told.ranges is not None
    one_by_one = {name: Range(0.0, float(k)) for k, name in enumerate(told.ranges)}
    found = matched(told.model, told.calibration, opened, one_by_one, list(opened.tensors))
    order = list(one_by_one)
    # Pooling, transposing and flattening hold the same numbers: the union of both.
    assert {order[int(own.high)] for own in found.values()} == {
        "x", "encoder_conv_relu", "encoder_flatten", "encoder_dense_relu", "head"
    }  # fmt: skip


def odd(operator: str) -> Opened:
    x = probes(load_task("digits-cnn").input)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return Opened({"in": x, "odd": padded}, {"odd": Origin(operator, ("in", "sizes"))})


def ranged(opened: Opened, ranges: Ranges) -> Range:
    task = load_task("digits-cnn")
    return matched(task.model().eval(), probes(task.input), opened, ranges, ["odd"])["odd"]


def test_a_tensor_that_holds_no_value_takes_its_inputs_range_where_that_is_safe() -> None:
    ranges = {"x": Range(0.5, 2.0)}
    assert ranged(odd("PAD"), ranges) == Range(0.0, 2.0)
    with pytest.raises(ExportError, match="tensor 'odd', which ADD makes, holds no value"):
        ranged(odd("ADD"), ranges)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits run: trained, calibrated by its clients, exported."""
    folder = tmp_path_factory.mktemp("calibrated")
    config = folder / "digits.toml"
    config.write_text(DIGITS.replace("rounds = 4", "rounds = 15") + STAGES)
    assert run(["simulate", str(config), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_calibrates_exports_and_passes_the_gate(finished: Path) -> None:
    for name in ("model-int8.onnx", "model-int8.tflite"):
        artefact = load_artefact(finished / "export" / name)
        assert artefact.passed
        assert artefact.notes == "calibration: federated, 12 clients, minmax"
        assert artefact.parity.drop <= 0.01


def test_it_reads_no_training_data(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "run"))

    def refuse(*_: Any) -> None:
        raise AssertionError("training data was read")

    monkeypatch.setattr("deploy.export.calibration.load_task_data", refuse)
    assert run(["export", str(again), "--format", "onnx", "--quantize", "int8"]) == 0


def test_without_the_stage_training_examples_set_the_ranges(finished: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "run"))
    text = (again / "config.toml").read_text().split("[[stages]]")
    (again / "config.toml").write_text("[[stages]]".join(t for t in text if 'calibrate"' not in t))
    assert run(["export", str(again), "--format", "onnx", "--quantize", "int8"]) == 0
    notes = load_artefact(again / "export" / "model-int8.onnx").notes
    assert notes == "calibration: central, 200 examples"


def of_others(told: dict[str, Any]) -> None:
    told["weights_sha256"] = "0" * 64


def no_range(told: dict[str, Any]) -> None:
    told["ranges"]["x"] = [1.0, float("nan")]


def no_text(told: dict[str, Any]) -> None:
    del told["text"]


@pytest.mark.parametrize(
    ("damage", "why"),
    [(of_others, "is about other weights"), (no_range, "is no range"), (no_text, "damaged")],
)
def test_a_calibration_that_cannot_be_used_is_one_line(
    finished: Path,
    tmp_path: Path,
    damage: Callable[[dict[str, Any]], None],
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "run"))
    told = json.loads((again / "calibration.json").read_text())
    damage(told)
    (again / "calibration.json").write_text(json.dumps(told))
    assert run(["export", str(again), "--format", "onnx", "--quantize", "int8"]) == 1
    assert why in capsys.readouterr().err
    (again / "calibration.json").unlink()
    assert run(["export", str(again), "--format", "onnx", "--quantize", "int8"]) == 1
    assert "is not there yet" in capsys.readouterr().err


def test_the_benchmark_compares_with_central_calibration(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "DRAWS", 1)
    with benchmark.opened(finished) as trained:
        told = [
            row for case in benchmark.CASES[:2] for row in benchmark.measure("t", trained, case)
        ]
    rows = benchmark.against_central(told)
    assert [row.clients for row in rows] == [0, 0, 12, 12]
    assert [row.points_against_central for row in rows[:2]] == [0.0, 0.0]
    for row in rows[2:]:
        assert abs(row.points_against_central) < 1.0
    assert benchmark.table(rows).count("federated, minmax") == 2
