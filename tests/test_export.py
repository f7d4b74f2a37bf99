"""Exports: every file is executed, compared and gated; a changed file is caught."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.cli import run
from deploy.edge.artefact import Gate, load_artefact
from deploy.edge.measure import Parity, measure_parity
from deploy.edge.metadata import read_metadata
from deploy.edge.reference import load_reference
from deploy.edge.runtimes import Floats, Predict, open_model
from deploy.export.exporter import attempt
from shared_models.datasets.load import load_dataset
from shared_models.errors import ExportError
from shared_models.files import sha256_of
from shared_models.inputs import InputSpec

FILES = ("model-fp32.onnx", "model-int8.onnx", "model-fp32.tflite", "model-int8.tflite")


def test_what_was_measured_fits_a_terminal_of_80_columns(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(exported / "model-int8.tflite")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "litert" in line]
    assert rows
    assert max(map(len, rows)) <= 80


def test_a_run_leaves_measured_files_and_says_so(exported: Path, finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "done"
    assert [artefact["file"] for artefact in summary["artefacts"]] == list(FILES)
    for name in FILES:
        artefact = load_artefact(exported / name)
        assert artefact.passed
        assert artefact.parity.examples == 359
        assert artefact.parity.score_torch > 0.8
        assert artefact.parity.drop <= 0.01
        assert artefact.latency.p95_ms >= artefact.latency.median_ms > 0
        assert artefact.size_bytes == (exported / name).stat().st_size


@pytest.mark.parametrize("name", ["model-fp32.onnx", "model-fp32.tflite"])
def test_fp32_files_say_what_torch_says(exported: Path, name: str) -> None:
    parity = load_artefact(exported / name).parity
    assert parity.agreement == 1.0
    assert parity.max_gap < 1e-4


@pytest.mark.parametrize("name", ["model-int8.onnx", "model-int8.tflite"])
def test_int8_files_are_smaller_and_really_quantized(exported: Path, name: str) -> None:
    small = load_artefact(exported / name)
    large = load_artefact(exported / name.replace("int8", "fp32"))
    assert small.size_bytes < 0.6 * large.size_bytes
    # What lies outside the calibrated range is clipped, and only that is far off.
    logits = load_reference(exported / "reference.npz").outputs
    assert 0 < small.parity.max_gap < 0.2 * (logits.max() - logits.min())


def test_logits_do_not_depend_on_the_batch(exported: Path) -> None:
    x = InputSpec((1, 8, 8)).prepare(np.random.default_rng(0).random((5, 64)))
    for name in FILES:
        with open_model(exported / name) as model:
            alone = np.concatenate([model.predict(x[k : k + 1]) for k in range(5)])
            np.testing.assert_allclose(model.predict(x), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_verify_repeats_the_measurement(
    exported: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(exported / name), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    before = load_artefact(exported / name)
    assert told["measured"][0]["parity"]["score"] == before.parity.score


@pytest.mark.parametrize("name", FILES)
def test_a_file_tells_what_its_description_does(exported: Path, finished: Path, name: str) -> None:
    inside = read_metadata(exported / name)
    beside = json.loads((exported / f"{name}.json").read_text())
    told = inside.pop("measured")
    for measured, own in zip(beside["measured"], told, strict=True):
        parity = own.pop("parity")
        assert parity.pop("metric") == measured["parity"].pop("metric")
        assert parity == pytest.approx(measured.pop("parity"), rel=1e-5)
        del measured["latency"]
        assert own == measured
    assert inside == {key: beside[key] for key in inside}
    assert inside["run"] == "run"
    assert inside["round"] == 15
    assert inside["weights_sha256"] == sha256_of(finished / "model.safetensors")
    assert {"task", "labels", "input", "quantization"} < inside.keys()


def test_verify_needs_no_torch(exported: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from deploy.cli import run;"
        "sys.exit(run(['verify', sys.argv[1]]))"
    )
    file = exported / "model-int8.tflite"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, capture_output=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize("name", ["model-int8.tflite", "model-int8.onnx"])
def test_a_changed_file_fails_verify(
    copied: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copied / name)
    assert run(["verify", str(copied / name)]) == 1
    assert f"{name}: is not the file that was measured" in capsys.readouterr().err


def test_a_changed_reference_fails_verify(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(copied / "reference.npz") as file:
        values = dict(file)
    np.savez(copied / "reference.npz", **{**values, "targets": values["targets"][::-1]})
    assert run(["verify", str(copied / "model-int8.onnx")]) == 1
    assert "reference.npz" in capsys.readouterr().err


def test_a_changed_normalisation_fails_verify(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = copied / "model-int8.tflite.json"
    values = json.loads(described.read_text())
    values["input"]["std"] = [0.1]
    described.write_text(json.dumps(values))
    assert run(["verify", str(copied / "model-int8.tflite")]) == 1
    assert "its description's `input` is not what was measured" in capsys.readouterr().err


def test_files_without_their_description_are_the_users_mistake(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "model-int8.onnx.json").unlink()
    (copied / "model-int8.tflite.json").write_text("{}")
    for name in ("model-int8.onnx", "model-int8.tflite"):
        assert run(["verify", str(copied / name)]) == 2
        assert f"{name}.json" in capsys.readouterr().err


def test_the_gate_fails_the_run_and_keeps_the_files(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(again / "export")
    # Calibrated on blank images, the activation ranges are too narrow for real ones.
    test = load_dataset("digits").test
    assert test is not None
    x, y = np.zeros((50, 8, 8)), np.arange(50) % 10
    images = test.x[np.arange(359)]
    np.savez(tmp_path / "blank.npz", x=x, y=y, x_test=images, y_test=test.y)
    text = (again / "config.toml").read_text()
    named = text.replace("[data]", f'[data]\nname = "{tmp_path / "blank.npz"}"')
    (again / "config.toml").write_text(named)
    assert run(["export", str(again), "--format", "tflite"]) == 1
    assert "model-int8.tflite: on litert 2.3.0: accuracy fell from" in capsys.readouterr().err
    assert not load_artefact(again / "export" / "model-int8.tflite").passed
    summary = json.loads((again / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "accuracy fell" in summary["reason"]
    (again / "config.toml").write_text(text)
    assert run(["export", str(again), "--format", "tflite"]) == 0
    summary = json.loads((again / "summary.json").read_text())
    assert summary["status"] == "done"
    assert "reason" not in summary


def test_export_verb_makes_only_what_is_asked(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(again / "export")
    assert run(["export", str(again), "--format", "onnx", "--quantize", "int8", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["file"] == "model-int8.onnx"
    made = {path.name for path in (again / "export").iterdir()}
    assert made == {"model-int8.onnx", "model-int8.onnx.json", "reference.npz"}
    assert run(["export", str(again), "--format", "coreml"]) == 2
    assert "must be 'onnx', 'tflite' or 'tflite-stream', got 'coreml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"measured": []},
        {"gate": {"max_score_drop": "none", "min_agreement": 0.9}},
        {"sha256": None},
        {"input": {"shape": [3, 3], "dtype": "float32", "mean": [0.0], "std": [1.0], "tokens": 0}},
    ],
)
def test_an_edited_description_is_one_line(
    copied: Path, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    described = copied / "model-int8.onnx.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), **change}))
    assert run(["verify", str(copied / "model-int8.onnx")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "model-int8.onnx" in line


def test_a_gate_refuses_what_only_seems_accurate() -> None:
    gate = Gate(max_score_drop=0.01, min_agreement=0.95)
    constant = Parity(100, "accuracy", score_torch=0.1, score=0.1, agreement=0.1, max_gap=3.0)
    assert "agrees with torch on 0.1000" in gate.objection(constant)
    assert gate.objection(Parity(100, "accuracy", 0.98, 0.975, 0.99, 1.0)) == ""


def answering(logits: Floats) -> Predict:
    """Returns a model that says the same to everything."""

    def predict(x: np.ndarray[Any, Any]) -> Floats:
        return logits[: len(x)]

    return predict


def test_answers_that_are_no_numbers_are_refused(exported: Path) -> None:
    reference = load_reference(exported / "reference.npz")
    spec = load_artefact(exported / "model-int8.onnx").input
    for value in (np.nan, np.inf):
        answer = np.full((100, 10), value, np.float32)
        with pytest.raises(ExportError, match="NaN or infinite"):
            measure_parity(answering(answer), spec, reference)


def test_a_later_export_keeps_what_is_there(finished: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "run"))
    assert run(["export", str(again), "--format", "tflite", "--quantize", "int8"]) == 0
    summary = json.loads((again / "summary.json").read_text())
    assert {artefact["file"] for artefact in summary["artefacts"]} == set(FILES)
    for name in FILES:
        assert run(["verify", str(again / "export" / name)]) == 0


def test_damaged_weights_are_not_exported_and_can_be_restored(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "run"))
    flip(again / "model.safetensors")
    assert run(["export", str(again), "--format", "onnx"]) == 1
    assert "model.safetensors: damaged" in capsys.readouterr().err
    assert run(["simulate", str(again), "--resume", "-s", "stages.export.latency_runs=20"]) == 0
    assert sha256_of(again / "model.safetensors") == sha256_of(finished / "model.safetensors")


def test_an_interrupt_that_a_converter_swallowed_is_still_one() -> None:
    def convert() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("the model cannot be exported") from error

    with pytest.raises(KeyboardInterrupt):
        attempt("model.onnx", convert)
    with pytest.raises(ExportError, match=r"model\.onnx: cannot be made: ZeroDivisionError"):
        attempt("model.onnx", lambda: 1 // 0)


def test_a_recurrent_model_is_exported_and_measured(tmp_path: Path) -> None:
    config = tmp_path / "watch.toml"
    config.write_text(
        'task = "watch-lstm"\n[data]\npartition = "natural"\nmax_examples_per_client = 20\n'
        '[[stages]]\nname = "train"\nkind = "train"\nrounds = 1\nclients_per_round = 8\n'
        "local_learning_rate = 0.1\nlocal_clip_norm = 1.0\n"
        '[[stages]]\nkind = "export"\ntest_examples = 50\nlatency_runs = 10\n'
        "max_score_drop = 0.1\nmin_agreement = 0.9\n"
    )
    assert run(["simulate", str(config), "--out", str(tmp_path / "run")]) == 0
    for name in (*FILES[::2], "model-dynamic.onnx", "model-dynamic.tflite"):
        artefact = load_artefact(tmp_path / "run" / "export" / name)
        assert artefact.parity.agreement > 0.9
        assert artefact.quantization == ("none" if "fp32" in name else "int8 weights")
        assert artefact.notes == ""
