"""The device's side: untrusted files run in a child, are predicted with, timed and verified."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

import deploy.edge.child
import deploy.edge.runtimes
from deploy.cli import run
from deploy.edge.artefact import load_artefact
from deploy.edge.bench import bench
from deploy.edge.card import Card, find_card, read_card
from deploy.edge.predict import Sampling, encode, generate
from deploy.edge.reference import load_reference
from deploy.edge.runtimes import Floats, is_installed, open_model
from deploy.export.formats.graph import Graph, Operator
from shared_models.datasets.shakespeare import ALPHABET
from shared_models.errors import ExportError
from shared_models.inputs import InputSpec
from tests.verbs import refused, told

TFLITE, ONNX = "model-int8.tflite", "model-int8.onnx"
needs_old = pytest.mark.skipif(
    not is_installed("tflite-runtime"), reason="NO TFLITE-RUNTIME: make edge-env"
)


@needs_old
def test_a_tflite_file_is_measured_on_both_runtimes(exported: Path) -> None:
    measured = load_artefact(exported / TFLITE).measured
    assert [one.runtime for one in measured] == ["litert", "tflite-runtime"]
    assert measured[1].version == "2.14.0"
    assert all(one.parity.examples == 359 for one in measured)


def test_what_is_not_there_is_not_tried_and_said(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy.edge.runtimes, "_old_python", lambda: None)
    found = told(capsys, "verify", str(exported / TFLITE))
    assert found["not_tried"] == ["tflite-runtime"]
    assert run(["verify", str(exported / TFLITE)]) == 0
    assert "not tried on tflite-runtime" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("WILDFLOWER_TFLITE_PYTHON", "/nowhere/python")
    assert "there is no such interpreter" in refused(capsys, "verify", str(exported / TFLITE))


def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Puts another program in the place of the worker."""
    script = tmp_path / "worker.py"
    script.write_text(code)
    monkeypatch.setattr(deploy.edge.child, "_WORKER", script)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import os; os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("import os; os.write(2, b'bad node\\n'); os.abort()", "was killed by SIGABRT: bad node"),
        ("import time; time.sleep(60)", "did not answer within 1 s"),
        ("raise SystemExit(3)", "ended with code 3"),
        ("print('x' * 100)", "answers with more than is sensible"),
        ("import os; os.write(1, bytes(16))", "answers with something else than numbers"),
        ("import os; os.write(2, b'std::bad_alloc\\n'); os.abort()", "needs more than the"),
    ],
)
def test_a_runtime_that_fails_is_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, line: str
) -> None:
    pretend(monkeypatch, tmp_path, code)
    monkeypatch.setattr(deploy.edge.runtimes, "_OPEN_S", 1.0)
    with pytest.raises(ExportError, match=f"{TFLITE}: litert {line}"):
        open_model(exported / TFLITE)


def test_input_of_another_shape_is_one_line(exported: Path) -> None:
    for name in (TFLITE, ONNX):
        with open_model(exported / name) as model, pytest.raises(ExportError, match="cannot run"):
            model.predict(np.zeros((1, 3, 5, 5), np.float32))


def write_images(folder: Path, exported: Path) -> tuple[list[Path], Floats]:
    """Writes the same example in every form; returns the files and what torch says of it."""
    reference = load_reference(exported / "reference.npz")
    x = reference.x[:1].astype(np.float64)
    np.savez(folder / "a.npz", x=x, y=[0])
    np.save(folder / "a.npy", x[0])
    pixels = ",".join(f"pixel{place}" for place in range(64))
    row = ",".join(f"{value:g}" for value in x.ravel())
    (folder / "a.csv").write_text(f"{pixels}\n{row}\n")
    image = Image.fromarray((x[0] * 255 / 16).round().astype(np.uint8))
    image.save(folder / "a.png")
    return [folder / f"a.{kind}" for kind in ("npz", "npy", "csv", "png")], reference.outputs[0]


def test_predict_says_the_same_of_every_form_of_an_example(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, logits = write_images(tmp_path, exported)
    for name in ("model-fp32.tflite", "model-fp32.onnx"):
        for file in files:
            ((first, *_),) = told(capsys, "predict", str(exported / name), "--input", str(file))
            assert first["label"] == str(logits.argmax())
            expected = np.exp(logits.max()) / np.exp(logits).sum()
            assert first["score"] == pytest.approx(expected, abs=0.01)


def test_predict_reads_standard_input_and_needs_no_description(
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, logits = write_images(tmp_path, copied)
    for file in files:
        stdin = io.TextIOWrapper(io.BytesIO(file.read_bytes()))
        monkeypatch.setattr(sys, "stdin", stdin)
        ((first, *_),) = told(capsys, "predict", str(copied / TFLITE), "--input", "-")
        assert first["label"] == str(logits.argmax())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty"),
        (b"1,2,3\n", "expected (n, 1, 8, 8)"),
        (b"1,2,3\n1,x,3\n", "row 2 has a cell that is no number"),
        (b"1,2,3\n1,2\n", "rows of numbers, all of the same length"),
        (b"\xff\xfe\x00", "is neither npz, npy, an image nor CSV"),
        (b"\x89PNG\r\n\x1a\n", "is no image"),
        (b"PK\x03\x04 and no more", "damaged"),
        (
            b"\x93NUMPY\x01\x00\x80\x00{'descr': '<f8', 'fortran_order': False, 'shape': (9",
            "damaged",
        ),
        (",".join(["nan"] * 64).encode(), "NaN"),
    ],
)
def test_input_that_is_none_is_one_line(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    line: str,
) -> None:
    (tmp_path / "input").write_bytes(content)
    shown = refused(capsys, "predict", str(exported / ONNX), "--input", str(tmp_path / "input"))
    assert line in shown
    assert "input" in shown


def test_pickles_are_not_opened(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    shown = refused(capsys, "predict", str(exported / ONNX), "--input", str(tmp_path / "x.npy"))
    assert "damaged" in shown


CHARACTERS = Card(tuple(ALPHABET), InputSpec((80,), "int64", tokens=len(ALPHABET)))


def following(x: np.ndarray[Any, Any]) -> Floats:
    """A model that says the character after the last one, mostly."""
    logits = np.zeros((len(x), len(ALPHABET)), np.float32)
    logits[np.arange(len(x)), (x[:, -1] + 1) % len(ALPHABET)] = 5.0
    return logits


def test_generated_text_is_a_function_of_seed_and_temperature() -> None:
    assert "".join(generate(following, CHARACTERS, "xyz a", Sampling(4, 0.0, 0))) == "bcde"
    one, again, other = (
        "".join(generate(following, CHARACTERS, "a", Sampling(50, 1.0, seed))) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_prompt_is_cut_or_padded_to_the_window() -> None:
    assert encode(CHARACTERS, "x" * 200).shape == encode(CHARACTERS, "").shape == (1, 80)
    assert encode(CHARACTERS, "~")[0, -1] == ALPHABET.index(" ")


def test_a_model_of_images_goes_on_with_no_text(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.txt").write_text("To be")
    words = ("predict", str(exported / ONNX), "--input", str(tmp_path / "x.txt"))
    assert "does not take text" in refused(capsys, *words, "--generate", "5")


def test_bench_times_every_runtime_and_thread_count(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("bench", str(exported / TFLITE), "--runs", "20", "--threads", "1", "--threads", "2")
    timings = told(capsys, *words)["timings"]
    runtimes = ["litert", "tflite-runtime"] if is_installed("tflite-runtime") else ["litert"]
    assert [(t["runtime"], t["threads"]) for t in timings] == [
        (name, threads) for name in runtimes for threads in (1, 2)
    ]
    for timing in timings:
        assert 0 < timing["p50_ms"] <= timing["p95_ms"] <= timing["p99_ms"]
        assert timing["cold_start_ms"] > timing["open_ms"] > 0
        assert 10 < timing["peak_mb"] < 500


def write_onnx(path: Path, taken: int, inputs: int = 1) -> Path:
    """Writes a file that knows nothing of us: what it is given, as float32, doubled."""
    entries = [helper.make_tensor_value_info(f"in{k}", taken, [1, 3]) for k in range(inputs)]
    nodes = [helper.make_node("Cast", ["in0"], ["cast"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Add", ["cast", "cast"], ["out"]))
    told = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3])
    opset = [helper.make_opsetid("", 18)]
    graph = helper.make_graph(nodes, "theirs", entries, [told])
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    )
    return path


@pytest.mark.parametrize("taken", ["FLOAT", "DOUBLE", "FLOAT16", "INT64", "INT32", "UINT8", "BOOL"])
def test_bench_takes_files_of_others(taken: str, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "theirs.onnx", getattr(TensorProto, taken))
    assert find_card(path) is None
    (timing,), failed = bench(path, 30, (1,))
    assert (timing.runs, failed) == (30, [])
    with open_model(path) as model:
        assert model.predict(np.array([[0, 1, 1]])).tolist() == [[0, 2, 2]]


def test_input_that_cannot_be_fed_is_named(tmp_path: Path) -> None:
    words = write_onnx(tmp_path / "words.onnx", TensorProto.STRING)
    with pytest.raises(ExportError, match=r"its input 'in0' is tensor\(string\)"):
        bench(words, 5, (1,))
    two = write_onnx(tmp_path / "two.onnx", TensorProto.FLOAT, inputs=2)
    with pytest.raises(ExportError, match="it takes 2 inputs at once"):
        bench(two, 5, (1,))


def test_bench_takes_a_tflite_file_of_others(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.activation((1, 3))
    path = tmp_path / "theirs.tflite"
    made = graph.apply(Operator("ADD", 1, "AddOptions"), [x, x], graph.activation((1, 3)))
    path.write_bytes(graph.to_bytes({"a": x}, {"b": made}))
    timings, failed = bench(path, 5, (1,))
    assert {timing.runtime for timing in timings} >= {"litert"}
    assert failed == []


def test_a_setting_that_fails_leaves_the_others_their_figures(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--runs", "5", "--threads", "1", "--threads", "96", "--runtime", "litert"]
    words = ("bench", str(exported / TFLITE), *settings)
    assert [one["threads"] for one in told(capsys, *words)["timings"]] == [1, 96]
    # What threads would add is taken away: none is left for so many.
    monkeypatch.setattr(deploy.edge.child, "_THREAD_MB", -10)
    found = told(capsys, *words)
    assert [one["threads"] for one in found["timings"]] == [1]
    (failed,) = found["failed"]
    assert failed["threads"] == 96
    assert "needs more than the 40 MB" in failed["reason"]
    assert run([*words]) == 0
    assert "failed on 96 threads" in capsys.readouterr().out


def test_predict_and_bench_need_neither_torch_nor_flower_nor_ray(
    exported: Path, tmp_path: Path
) -> None:
    files, _ = write_images(tmp_path, exported)
    for words in (
        ["verify", str(exported / TFLITE)],
        ["predict", str(exported / TFLITE), "--input", str(files[3])],
        ["bench", str(exported / ONNX), "--runs", "5", "--threads", "1"],
    ):
        code = (
            "import sys; sys.modules.update(dict.fromkeys(('torch', 'flwr', 'ray')));"
            "from deploy.cli import run; sys.exit(run(sys.argv[1:]))"
        )
        subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


def test_the_card_is_read_from_the_description(exported: Path) -> None:
    card = read_card(exported / TFLITE)
    assert card.labels == tuple("0123456789")
    assert card.input.white == 16.0
