"""Would `verify` notice? Files are changed as a mistake or an enemy would change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from onnx import helper, numpy_helper

from deploy.edge.artefact import check_hash, load_artefact
from deploy.edge.reference import load_reference, meaning_of, save_reference
from deploy.edge.runtimes import is_installed, open_model
from deploy.export.formats.graph import pack, unpack
from shared_models.errors import ExportError, WildflowerError
from shared_models.files import sha256_of
from tests.verbs import refused, told

FILES = ("model-fp32.tflite", "model-int8.tflite", "model-fp32.onnx", "model-int8.onnx")
Capsys = pytest.CaptureFixture[str]


def edit(path: Path, **changes: object) -> None:
    """Changes the description of a file, and makes it agree with the bytes that lie there."""
    described = path.with_name(path.name + ".json")
    values = {**json.loads(described.read_text()), **changes}
    values.update(sha256=sha256_of(path), size_bytes=path.stat().st_size)
    values["reference_sha256"] = sha256_of(path.parent / "reference.npz")
    described.write_text(json.dumps(values))


def flip_signs(path: Path) -> None:
    """Negates the weights of the last layer."""
    if path.suffix == ".onnx":
        model = onnx.load(str(path))
        weights = [w for w in model.graph.initializer if len(w.dims) == 2][-1]
        weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
        onnx.save(model, str(path))
        return
    model = unpack(path.read_bytes())
    (graph,) = model.subgraphs
    dense = [op for op in graph.operators if _code(model, op) == "FULLY_CONNECTED"][-1]
    tensor = graph.tensors[dense.inputs[1]]
    buffer = model.buffers[tensor.buffer]
    kind = np.dtype(np.float32 if tensor.type == schema.TensorType.FLOAT32 else np.int8)
    values: np.ndarray[Any, Any] = np.asarray(buffer.data, np.uint8).view(kind)
    buffer.data = np.negative(values).view(np.uint8)
    path.write_bytes(pack(model))


def _code(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex].builtinCode
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    return str(names[code])


def test_constants_behind_the_flatbuffer_are_kept(exported: Path, tmp_path: Path) -> None:
    """The quantizer puts the constants of a larger model there."""
    content = (exported / "model-fp32.tflite").read_bytes()
    model = unpack(content)
    buffer = max(model.buffers, key=lambda one: 0 if one.data is None else len(one.data))
    behind, buffer.data = bytes(buffer.data), None
    buffer.offset, buffer.size = 1 << 30, len(behind)
    head = len(pack(model)) // 16 * 16 + 16
    buffer.offset = head
    (tmp_path / "model.tflite").write_bytes(pack(model).ljust(head, b"\0") + behind)
    packed = pack(unpack((tmp_path / "model.tflite").read_bytes()))
    (tmp_path / "packed.tflite").write_bytes(packed)
    x = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    answers = []
    for path in (exported / "model-fp32.tflite", *sorted(tmp_path.iterdir())):
        with open_model(path) as opened:
            answers.append(opened.predict(x))
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


@pytest.mark.parametrize("name", FILES)
def test_flipped_signs_of_a_layer_are_caught(copied: Path, name: str, capsys: Capsys) -> None:
    flip_signs(copied / name)
    assert "is not the file that was measured" in refused(capsys, "verify", str(copied / name))
    edit(copied / name)
    assert "accuracy fell from" in refused(capsys, "verify", str(copied / name))


@pytest.mark.parametrize("name", FILES)
def test_swapped_labels_are_caught(copied: Path, name: str, capsys: Capsys) -> None:
    path, swapped = copied / name, ["1", "0", *"23456789"]
    edit(path, labels=swapped)
    assert "`labels` is not what was measured" in refused(capsys, "verify", str(path))
    inside = path.read_bytes()
    assert inside.count(b'"labels":["0","1"') == 1
    path.write_bytes(inside.replace(b'"labels":["0","1"', b'"labels":["1","0"'))
    edit(path)
    assert "`labels` is not what was measured" in refused(capsys, "verify", str(path))


@pytest.mark.parametrize("change", [{"mean": [8.0]}, {"std": [1.0]}, {"std": [255.0]}])
def test_another_normalisation_is_caught(
    copied: Path, change: dict[str, object], capsys: Capsys
) -> None:
    path = copied / "model-int8.tflite"
    described = load_artefact(path)
    values = {**json.loads((copied / f"{path.name}.json").read_text())["input"], **change}
    edit(path, input=values)
    assert "`input` is not what was measured" in refused(capsys, "verify", str(path))
    reference = load_reference(copied / "reference.npz")
    meaning = meaning_of(described.labels, load_artefact(path).input, described.answer)
    changed = replace(reference, meaning=meaning)
    save_reference(copied / "reference.npz", changed)
    edit(path)
    assert "are not those of its description" in refused(capsys, "verify", str(path))
    # Even if the file says nothing, its answers are other ones.
    model = unpack(path.read_bytes())
    model.metadata = [entry for entry in model.metadata if entry.name != b"wildflower"]
    path.write_bytes(pack(model))
    edit(path)
    shown = refused(capsys, "verify", str(path))
    assert "accuracy fell from" in shown or "agrees with torch on" in shown


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 4, 100, 5000])
def test_a_truncated_file_is_caught_and_is_one_line(
    copied: Path, name: str, kept: int, capsys: Capsys
) -> None:
    path = copied / name
    path.write_bytes(path.read_bytes()[:kept])
    assert "is not the file that was measured" in refused(capsys, "verify", str(path))
    edit(path)
    assert name in refused(capsys, "verify", str(path))


@pytest.mark.skipif(not is_installed("tflite-runtime"), reason="NO TFLITE-RUNTIME: make edge-env")
def test_the_stock_recipe_is_caught_on_the_runtime_that_it_breaks(
    copied: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per-channel int8 weights of dense layers: right on LiteRT, wrong on 2.14, and no error."""
    path = copied / "model-int8.tflite"
    stock = quantizer.Quantizer(str(copied / "model-fp32.tflite"), recipe.dynamic_wi8_afp32())
    stock.quantize().export_model(str(path), overwrite=True)
    edit(path)
    shown = refused(capsys, "verify", str(path))
    assert "on tflite-runtime 2.14.0: accuracy fell from" in shown
    monkeypatch.setattr("deploy.edge.runtimes._old_python", lambda: None)
    (measured,) = told(capsys, "verify", str(path))["measured"]
    assert measured["parity"]["agreement"] > 0.98


def huge_tflite(path: Path) -> None:
    """Claims an input of four billion values."""
    model = unpack(path.read_bytes())
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shape = [1, 1, 1 << 16, 1 << 16]
    path.write_bytes(pack(model))


def huge_onnx(path: Path) -> None:
    """Claims a constant of a terabyte."""
    size = helper.make_tensor("size", onnx.TensorProto.INT64, [1], [1 << 38])
    nodes = [
        helper.make_node("Constant", [], ["size"], value=size),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["input", "sum"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])
        for name in ("input", "logits")
    ]
    graph = helper.make_graph(nodes, "huge", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(20_000))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model-int8.tflite", huge_tflite),
        ("model-fp32.onnx", huge_onnx),
        ("model-int8.tflite", noise),
        ("model-int8.onnx", noise),
    ],
)
def test_a_hostile_file_is_one_line_for_every_verb(
    copied: Path, name: str, damage: Callable[[Path], None], capsys: Capsys
) -> None:
    path = copied / name
    damage(path)
    edit(path)
    np.save(copied / "x.npy", np.zeros((1, 64)))
    assert name in refused(capsys, "verify", str(path))
    assert name in refused(capsys, "predict", str(path), "--input", str(copied / "x.npy"))
    assert name in refused(capsys, "bench", str(path), "--threads", "1")
    path.with_name(f"{name}.json").unlink()
    assert name in refused(capsys, "predict", str(path), "--input", str(copied / "x.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_random_damage_never_takes_us_down(copied: Path, name: str) -> None:
    path, rng = copied / name, np.random.default_rng(1)
    whole = path.read_bytes()
    x = np.zeros((1, 1, 8, 8), np.float32)
    refusals = []
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), rng.integers(1, 20)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        for runtime in ("litert", "tflite-runtime") if path.suffix == ".tflite" else ("",):
            if runtime and not is_installed(runtime):
                continue
            try:
                with open_model(path, runtime) as model:
                    model.predict(x)
            except WildflowerError as error:
                refusals.append(str(error))
    assert refusals
    assert all("\n" not in line for line in refusals)


def test_a_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    check_hash(tmp_path / "a", sha256_of(tmp_path / "a"))
    with pytest.raises(ExportError, match="is not the file that was measured"):
        check_hash(tmp_path / "a", "0" * 64)
