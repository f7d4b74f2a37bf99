"""Formats: every file says what torch says, on every runtime that is here; the writer's laws."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference
from torch import Tensor, nn

from deploy.cli import run
from deploy.edge.metadata import KEY, read_metadata
from deploy.edge.quiet import quietly
from deploy.edge.runtimes import is_installed, open_model, runtimes_for
from deploy.export.formats import FORMATS, choose, converted, export, objection
from deploy.export.formats.fused import write_step
from deploy.export.formats.graph import unpack
from deploy.export.formats.layers import FLOAT16, FLOAT32, INT8, Stores, as_float32
from deploy.export.formats.looped import write_looped
from deploy.export.formats.metadata import fill_in, reserve
from deploy.export.formats.recurrent import UnknownStructureError, recognise
from deploy.export.formats.source import Made, Source
from deploy.export.formats.tflite_slim import slim
from shared_models.errors import ExportError, InputError
from shared_models.models.lstm import NextCharacterLstm, SensorLstm
from shared_models.tasks import load_task
from tests.conftest import DIGITS

OLD = pytest.mark.skipif(not is_installed("tflite-runtime"), reason="make edge-env")


@dataclass(frozen=True)
class Shape:
    """Of a random recurrent classifier; tokens if there are any, else floats."""

    time: int
    width: int
    layers: int = 1
    channels: int = 3
    tokens: int = 0


class Chain(nn.Module):
    """A recurrent classifier of any shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.tokens, shape.channels) if shape.tokens else None
        self.lstm = nn.LSTM(shape.channels, shape.width, shape.layers, batch_first=True)
        self.head = nn.Sequential(nn.Linear(shape.width, 7), nn.ReLU(), nn.Linear(7, 4))

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x if self.embedding is None else self.embedding(x))
        logits: Tensor = self.head(states[:, -1])
        return logits


def randomised(model: nn.Module) -> nn.Module:
    """Returns the model with weights large enough that gates open and close."""
    torch.manual_seed(0)
    for weights in model.parameters():
        nn.init.normal_(weights, std=0.5)
    return model.eval()


def inputs(shape: Shape, count: int = 5) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    if shape.tokens:
        return rng.integers(0, shape.tokens, (count, shape.time))
    return rng.normal(size=(count, shape.time, shape.channels)).astype(np.float32)


def allowed(name: str) -> float:
    """Returns the largest difference to torch's logits, as a share of their range."""
    found = {"fp32": 1e-5, "fp16": 2e-3, "dynamic": 0.05, "int8": 0.15, "int8-float": 0.15}
    return next(gap for ending, gap in found.items() if name.endswith(ending))


def torch_says(model: nn.Module, x: NDArray[Any]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.from_numpy(x)).numpy()
    return logits


@dataclass(frozen=True)
class Device:
    """A file in LiteRT as a device would use it."""

    interpreter: Any

    def feed(self, x: NDArray[Any]) -> NDArray[np.float32]:
        entry, exit_ = (
            self.interpreter.get_input_details()[0],
            self.interpreter.get_output_details()[0],
        )
        self.interpreter.set_tensor(entry["index"], x.astype(entry["dtype"]))
        self.interpreter.invoke()
        logits: NDArray[np.float32] = self.interpreter.get_tensor(exit_["index"])
        return logits

    def reset(self) -> None:
        self.interpreter.reset_all_variables()

    def all(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Feeds independent sequences."""
        told = []
        for one in x:
            self.reset()
            told.append(self.feed(one[None]))
        return np.concatenate(told)


def device(content: bytes) -> Device:
    with quietly():
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
    return Device(interpreter)


def looped(model: nn.Module, x: NDArray[Any], stores: Stores = FLOAT32) -> bytes:
    return write_looped(recognise(model), x.shape[1:], stores)


def streaming(model: nn.Module, x: NDArray[Any]) -> Device:
    return device(write_step(recognise(model), x.shape[1:], as_float32))


SHAPES = [
    Shape(time=1, width=1, channels=1),
    Shape(time=2, width=5, layers=2),
    Shape(time=7, width=17, channels=5),
    Shape(time=20, width=33, layers=2, channels=2),
    Shape(time=1, width=3, tokens=2),
    Shape(time=13, width=9, layers=2, tokens=11),
    Shape(time=20, width=64, tokens=50, channels=8),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loops_compute_what_torch_does(shape: Shape) -> None:
    model, x = randomised(Chain(shape)), inputs(shape)
    told = device(looped(model, x)).all(x)
    np.testing.assert_allclose(told, torch_says(model, x), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES[2:4] + SHAPES[5:], ids=str)
@pytest.mark.parametrize("stores", [FLOAT16, INT8], ids=["fp16", "int8"])
def test_smaller_weights_stay_near(shape: Shape, stores: Stores) -> None:
    model, x = randomised(Chain(shape)), inputs(shape, count=20)
    expected = torch_says(model, x)
    gap = np.abs(device(looped(model, x, stores)).all(x) - expected).max() / np.ptp(expected)
    assert gap < (0.01 if stores is FLOAT16 else 0.15)


def test_a_loop_begins_anew_in_each_invocation() -> None:
    shape = SHAPES[3]
    model, x = randomised(Chain(shape)), inputs(shape)
    file = device(looped(model, x))
    told = np.concatenate([file.feed(one[None]) for one in x])
    np.testing.assert_allclose(told, torch_says(model, x), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_stream_ends_where_the_sequence_does(shape: Shape) -> None:
    model, x = randomised(Chain(shape)), inputs(shape)
    whole = device(looped(model, x)).all(x)
    stream = streaming(model, x)
    for sequence, expected in zip(x, whole, strict=True):
        stream.reset()
        for step in range(shape.time):
            told = stream.feed(sequence[None, step : step + 1])
        np.testing.assert_allclose(told[0], expected, atol=1e-4)


def test_a_stream_goes_on_until_it_is_reset() -> None:
    shape = Shape(time=6, width=8)
    model, x = randomised(Chain(shape)), inputs(shape, count=2)
    stream = streaming(model, x)
    both = np.concatenate([x[0], x[1]])
    for row in both:
        told = stream.feed(row[None, None])
    np.testing.assert_allclose(told, torch_says(model, both[None]), atol=1e-4)
    stream.reset()
    for row in x[1]:
        told = stream.feed(row[None, None])
    np.testing.assert_allclose(told, torch_says(model, x[1:]), atol=1e-4)


class Simple(Chain):
    """Has simple recurrent layers of both kinds, around an LSTM."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.first = nn.RNN(shape.channels, 6, nonlinearity="relu", batch_first=True)
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.last = nn.RNN(7, shape.width, shape.layers, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.embedding is None else self.embedding(x)
        _, hidden = self.last(self.lstm(self.first(x)[0])[0])
        logits: Tensor = self.head(hidden[-1])
        return logits


# The widest of them is chaotic with such weights: rounding grows at every step.
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_simple_recurrent_layers_are_looped_too(shape: Shape) -> None:
    model, x = randomised(Simple(shape)), inputs(shape)
    expected = torch_says(model, x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(device(looped(model, x)).all(x) / scale, expected / scale, atol=1e-4)
    stream = streaming(model, x)
    for step in range(shape.time):
        told = stream.feed(x[:1, step : step + 1])
    np.testing.assert_allclose(told[0] / scale, expected[0] / scale, atol=1e-4)


class Other(Chain):
    """Written otherwise, computes the same kind of thing."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.second = nn.LSTM(shape.width, shape.width, bias=False, batch_first=True)
        self.idle = nn.Dropout(0.5)
        self.out = nn.Linear(shape.width, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        _, (hidden, _) = self.second(self.idle(states))
        logits: Tensor = self.out(self.idle(hidden[-1]))
        return logits


class Mean(Chain):
    """Looks at all states, not at the last."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0].mean(dim=1))
        return logits


class Started(Chain):
    """Does not begin at zero."""

    def forward(self, x: Tensor) -> Tensor:
        start = torch.ones(1, len(x), 5)
        logits: Tensor = self.head(self.lstm(x, (start, start))[0][:, -1])
        return logits


class Both(Chain):
    """Goes backwards too."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.lstm = nn.LSTM(3, 5, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(10, 4))


class Gru(Chain):
    """Has layers of another kind."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.gru = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.gru(x)[0][:, -1])
        return logits


SMALL = Shape(time=4, width=5)


def test_models_are_told_by_structure() -> None:
    model, x = randomised(Other(SMALL)), inputs(SMALL)
    np.testing.assert_allclose(device(looped(model, x)).all(x), torch_says(model, x), atol=1e-4)
    assert len(recognise(model).layers) == 2
    for task in ("watch-lstm", "shakespeare-lstm", "text-rnn", "text-lstm"):
        recognise(load_task(task).model().eval())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Mean, "mean is not the state after the last step"),
        (Started, "cannot be traced|begins at zero"),
        (Both, "lstm is bidirectional"),
        (Gru, "gru is not an LSTM or RNN"),
    ],
)
def test_what_is_not_such_a_chain_is_refused(other: type[Chain], reason: str) -> None:
    with pytest.raises(UnknownStructureError, match=reason):
        recognise(randomised(other(SMALL)))


def test_weights_that_diverged_are_refused() -> None:
    model = randomised(Chain(SMALL))
    nn.init.constant_(next(model.lstm.parameters()), torch.nan)  # type: ignore[union-attr]
    with pytest.raises(ExportError, match="training diverged"):
        looped(model, inputs(SMALL))


# --- every format ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Source:
    model = load_task("digits-cnn").model(0).eval()
    x = np.random.default_rng(0).random((60, 1, 8, 8)).astype(np.float32)
    return Source(model, x, tmp_path_factory.mktemp("cnn"))


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Source:
    x = inputs(Shape(time=9, width=0, channels=6), count=60)
    return Source(randomised(SensorLstm(6, 16, 7)), x, tmp_path_factory.mktemp("lstm"))


@pytest.fixture(params=["cnn", "lstm"])
def source(request: pytest.FixtureRequest) -> Source:
    found: Source = request.getfixturevalue(request.param)
    return found


def exported(source: Source, name: str, folder: Path) -> tuple[Path, Made]:
    path = folder / FORMATS[name].file
    with quietly():
        return path, export(source, name, path)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_what_torch_says_on_every_runtime(
    source: Source, name: str, tmp_path: Path
) -> None:
    if objection(source.model, name):
        pytest.skip(objection(source.model, name))
    path, made = exported(source, name, tmp_path)
    assert made.quantization == "none" if name.endswith("fp32") else made.quantization != "none"
    x = source.calibration
    expected = torch_says(source.model, x)
    for runtime in filter(is_installed, runtimes_for(path)):
        with open_model(path, runtime) as model:
            gap = np.abs(model.predict(x) - expected).max() / np.ptp(expected)
        assert gap < allowed(name), runtime


def test_an_onnx_export_writes_only_into_its_workshop(
    cnn: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writes_where_it_stands(*_: object, **__: object) -> None:
        Path("sym_shape_infer_temp.onnx").touch()

    # What onnxruntime does where this inference does not end.
    monkeypatch.setattr(SymbolicShapeInference, "infer_shapes", writes_where_it_stands)
    monkeypatch.chdir(tmp_path)
    for name in ("onnx-int8", "onnx-dynamic"):
        source = replace(cnn, workshop=Path(tempfile.mkdtemp(dir=tmp_path.parent)))
        assert exported(source, name, source.workshop)[0].is_file()
        assert not list(tmp_path.iterdir())


def test_an_onnx_file_has_what_runtimes_read_and_no_more(lstm: Source, tmp_path: Path) -> None:
    path, _ = exported(lstm, "onnx-fp32", tmp_path)
    weights = sum(own.numel() for own in lstm.model.parameters())
    assert 4 * weights < path.stat().st_size < 4 * weights + 600


@pytest.mark.parametrize("quantized", [False, True])
def test_a_slim_tflite_file_computes_what_it_did(
    cnn: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, quantized: bool
) -> None:
    monkeypatch.setattr(converted, "slim", lambda _: None)
    whole, slimmed = tmp_path / "whole.tflite", tmp_path / "slim.tflite"
    with quietly():
        if quantized:
            converted.quantize(cnn, converted.full_int8(), whole)
        else:
            shutil.copyfile(converted.convert(cnn), whole)
    shutil.copyfile(whole, slimmed)
    slim(slimmed)
    assert slimmed.stat().st_size < whole.stat().st_size - 1000
    for runtime in filter(is_installed, runtimes_for(whole)):
        with open_model(whole, runtime) as one, open_model(slimmed, runtime) as other:
            np.testing.assert_array_equal(
                one.predict(cnn.calibration), other.predict(cnn.calibration)
            )
    signatures = [Interpreter(str(path)).get_signature_list() for path in (whole, slimmed)]
    assert signatures[0] == signatures[1]
    told = [unpack(path.read_bytes()) for path in (whole, slimmed)]
    whole_told, slim_told = (
        {entry.name: bytes(own.buffers[entry.buffer].data) for entry in own.metadata}
        for own in told
    )
    assert whole_told == slim_told


def test_int8_files_take_what_their_name_says(cnn: Source, tmp_path: Path) -> None:
    for name, dtype in (("tflite-int8", np.int8), ("tflite-int8-float", np.float32)):
        interpreter = device(exported(cnn, name, tmp_path)[0].read_bytes()).interpreter
        ends = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        assert all(end["dtype"] is dtype for end in ends)


def test_defaults_depend_on_the_structure(cnn: Source, lstm: Source) -> None:
    both = ("onnx", "tflite")
    assert choose(cnn.model, both, ["auto"]) == (
        "onnx-fp32",
        "onnx-int8",
        "tflite-fp32",
        "tflite-int8",
    )
    assert choose(lstm.model, both, ["auto", "none"]) == (
        "onnx-fp32",
        "onnx-dynamic",
        "tflite-fp32",
        "tflite-dynamic",
    )
    assert choose(lstm.model, ["tflite-stream"], ["auto"]) == (
        "tflite-stream-fp32",
        "tflite-stream-dynamic",
    )
    dense = load_task("motes-autoencoder").model()
    assert choose(dense, ["tflite"], ["auto"], "values") == ("tflite-fp32", "tflite-dynamic")
    assert choose(cnn.model, ["tflite"], ["auto"], "values") == ("tflite-fp32", "tflite-int8")


@pytest.mark.parametrize(
    ("model", "family", "quantize", "reason"),
    [
        ("lstm", "tflite", "int8", "state of a recurrent layer stays float"),
        ("lstm", "onnx", "int8", "QDQ leaves the weights"),
        ("cnn", "tflite-stream", "none", "no state that could be kept"),
        ("cnn", "onnx", "fp16", "tflite can"),
        ("cnn", "onnx", "int8-float", "say int8"),
        ("lstm", "tflite-stream", "fp16", "say none or dynamic"),
    ],
)
def test_what_cannot_be_made_says_why(
    request: pytest.FixtureRequest, model: str, family: str, quantize: str, reason: str
) -> None:
    found: Source = request.getfixturevalue(model)
    with pytest.raises(InputError, match=f"{family}-.*: cannot be made.*{reason}"):
        choose(found.model, [family], [quantize])


def test_what_cannot_be_made_is_told_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "digits.toml"
    config.write_text(DIGITS + '\n[[stages]]\nkind = "export"\nformats = ["tflite-stream"]\n')
    assert run(["simulate", str(config), "--out", str(tmp_path / "run")]) == 2
    assert "tflite-stream-fp32: cannot be made of this model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tflite-fp32", "tflite-dynamic", "onnx-fp32", "onnx-dynamic"])
def test_what_is_not_looped_is_unrolled_and_says_so(name: str, tmp_path: Path) -> None:
    source = Source(randomised(Gru(SMALL)), inputs(SMALL), tmp_path)
    path, made = exported(source, name, tmp_path)
    assert ("unrolled over time" in made.notes) == name.startswith("tflite")
    with open_model(path) as model:
        expected = torch_says(source.model, source.calibration)
        gap = np.abs(model.predict(source.calibration) - expected).max() / np.ptp(expected)
    assert gap < allowed(name)


# --- what a file tells of itself -------------------------------------------------------------


@pytest.fixture(params=["tflite-fp32", "tflite-int8", "onnx-fp32"])
def plain(request: pytest.FixtureRequest, cnn: Source, tmp_path: Path) -> Path:
    """A file without metadata."""
    return exported(cnn, request.param, tmp_path)[0]


def test_metadata_is_found_and_changes_no_answer(plain: Path, cnn: Source) -> None:
    with pytest.raises(InputError, match="has no metadata"):
        read_metadata(plain)
    with open_model(plain) as model:
        before = model.predict(cnn.calibration)
    reserve(plain, 50)
    fill_in(plain, '{"labels":["größer"]}', 50)
    assert read_metadata(plain) == {"labels": ["größer"]}
    with open_model(plain) as model:
        assert np.array_equal(model.predict(cnn.calibration), before)


def test_metadata_needs_room(plain: Path) -> None:
    reserve(plain, 50)
    with pytest.raises(ExportError, match="no room for metadata of 60 bytes"):
        fill_in(plain, "x" * 60, 50)


def test_a_damaged_file_has_no_metadata(plain: Path) -> None:
    reserve(plain, 50)
    fill_in(plain, "{}", 50)
    content = plain.read_bytes()
    for size in (0, 3, 40, len(content) // 2):
        plain.write_bytes(content[:size])
        with pytest.raises(InputError, match=plain.name):
            read_metadata(plain)
    plain.write_bytes(content.replace(b"{}", b"{["))
    with pytest.raises(InputError, match="no JSON"):
        read_metadata(plain)


def values_in(content: bytes) -> Iterator[int]:
    """Yields where the values of each tensor begin."""
    for buffer in unpack(content).buffers:
        if buffer.data is not None and len(buffer.data) >= 64:
            place = content.find(bytes(buffer.data))
            assert struct.unpack_from("<I", content, place - 4) == (len(buffer.data),)
            yield place


def test_values_are_aligned_as_the_schema_demands(cnn: Source, tmp_path: Path) -> None:
    path, _ = exported(cnn, "tflite-int8", tmp_path)
    reserve(path, 70)
    model, x = randomised(Chain(SMALL)), inputs(SMALL)
    for content in (path.read_bytes(), looped(model, x)):
        places = list(values_in(content))
        assert len(places) > 3
        assert not any(place % 16 for place in places)
    assert KEY in path.read_bytes().decode("latin-1")


@OLD
@pytest.mark.slow
def test_the_next_character_is_right_on_the_old_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NextCharacterLstm(30).eval()
    x = np.random.default_rng(0).integers(0, 30, (20, 80))
    source, expected = Source(model, x, tmp_path), torch_says(model, x)
    for name in ("tflite-fp32", "tflite-dynamic", "tflite-stream-dynamic"):
        with open_model(exported(source, name, tmp_path)[0], "tflite-runtime") as old:
            gap = np.abs(old.predict(x) - expected).max() / np.ptp(expected)
        assert gap < allowed(name)
