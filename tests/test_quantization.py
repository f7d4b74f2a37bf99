"""Quantization-aware training: on the grid of the files, straight through, the same everywhere."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.quantization import Setting, measure, table
from clients.trainers import TRAINERS
from clients.training import Unfit
from deploy.cli import run
from deploy.export.exporter import attempt
from deploy.export.formats import export
from deploy.export.formats.graph import unpack
from deploy.export.formats.source import Source
from shared_models.arrays import in_dtype, load_arrays
from shared_models.config import parse_config
from shared_models.errors import ConfigError, InputError
from shared_models.files import sha256_of
from shared_models.gradients import by_autograd
from shared_models.objectives.choice import MakeObjective, objective_of
from shared_models.objectives.fedprox import fedprox
from shared_models.objectives.quantized import quantize_aware
from shared_models.objectives.scaffold import scaffold
from shared_models.objectives.supervised import supervised
from shared_models.optimizers.sgd import sgd
from shared_models.partial import Partial
from shared_models.quantization import Grid, round_activations, round_weights, rounding
from shared_models.task import Task
from shared_models.tasks import load_task
from tests.conftest import DIGITS
from tests.test_runs import wildflower
from tests.test_trainers import Noisy, data_for, partial_of, request_for, training_of

FINETUNE = """
[[stages]]
kind = "finetune"
rounds = 2
clients_per_round = 6
local_learning_rate = 0.05
quantize_aware = true
"""


def seen(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """What the layers of a rounding model compute with, by the name of the parameter."""
    found: dict[str, NDArray[np.float32]] = {}
    for name, part in model.named_modules():
        if hasattr(part, "rounded"):
            rounded = part.rounded()
            found |= {f"{name}.{key}": own.detach().numpy() for key, own in rounded.items()}
    return found


def stored(path: Path) -> Iterator[NDArray[np.float64]]:
    """The int8 constants of a TFLite file, dequantized."""
    model = unpack(path.read_bytes())
    for tensor in (own for graph in model.subgraphs for own in graph.tensors):
        data = model.buffers[tensor.buffer].data
        if tensor.type != 9 or data is None or not len(data):
            continue
        steps = np.frombuffer(bytes(data), np.int8).reshape(tensor.shape).astype(np.float64)
        scale = np.asarray(tensor.quantization.scale, np.float64)
        shape = [1] * steps.ndim
        shape[tensor.quantization.quantizedDimension] = len(scale)
        yield steps * scale.reshape(shape)


@pytest.mark.parametrize(
    ("task_name", "format_name"),
    [
        ("digits-cnn", "tflite-int8"),
        ("digits-cnn", "tflite-dynamic"),
        ("watch-lstm", "tflite-dynamic"),
    ],
)
def test_weights_are_those_of_the_file(task_name: str, format_name: str, tmp_path: Path) -> None:
    task = load_task(task_name)
    rng = np.random.default_rng(0)
    examples = rng.random((8, *task.input.shape)).astype(np.float32)
    path = tmp_path / "model.tflite"
    source = Source(task.model(3).eval(), examples, tmp_path)
    attempt("file", lambda: export(source, format_name, path))
    ours = [own for name, own in seen(rounding(task.model(3), Grid())).items() if "weight" in name]
    theirs = [own for own in stored(path) if own.ndim > 1 and own.size > 10]  # no biases
    assert len(theirs) == len(ours)
    for own in ours:
        # Of an image with one channel, TFLite convolves each channel by itself.
        layout = own.transpose(1, 2, 3, 0) if own.ndim == 4 else own
        gaps = [np.abs(layout - t).max() for t in theirs if t.shape == layout.shape]
        assert min(gaps) <= 1e-6 * np.abs(own).max()


def test_onnx_has_the_same_convolution(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    task = load_task("digits-cnn")
    examples = np.random.default_rng(0).random((8, *task.input.shape)).astype(np.float32)
    path = tmp_path / "model.onnx"
    source = Source(task.model(3).eval(), examples, tmp_path)
    attempt("file", lambda: export(source, "onnx-int8", path))
    graph = onnx.load(path).graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    (name,) = [n for n, a in arrays.items() if a.dtype == np.int8 and a.ndim == 4]
    (scale,) = [arrays[node.input[1]] for node in graph.node if node.input[0] == name]
    theirs = arrays[name].astype(np.float64) * scale.reshape(-1, 1, 1, 1)
    ours = seen(rounding(task.model(3), Grid()))["encoder.conv.weight"]
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(ours).max()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_grid_has_so_many_steps_and_the_gradient_goes_straight_through(bits: int) -> None:
    w = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for rounded, most in (
        (round_weights(w, bits), 2**bits - 1),
        (round_activations(w, bits), 2**bits),
    ):
        assert len(torch.unique(rounded)) <= most
        assert 0.0 in rounded
        (slope,) = torch.autograd.grad((rounded * rounded.detach()).sum(), w)
        assert torch.equal(slope, rounded)
    channels = round_weights(w, bits, groups=5)
    assert all(torch.equal(channels[k], round_weights(w[k], bits)) for k in range(5))
    assert torch.equal(round_weights(torch.zeros(3), bits), torch.zeros(3))


def test_eight_bits_of_activations_are_steps_of_the_batchs_range() -> None:
    x = torch.tensor([-1.0, 0.0, 0.3, 3.0])
    step = 4.0 / 255
    found = round_activations(x, 8) / step
    torch.testing.assert_close(found, found.round())
    torch.testing.assert_close(round_activations(x, 8), x, atol=step, rtol=0)


@pytest.mark.parametrize("task_name", ["digits-cnn", "mnist-2nn", "watch-lstm"])
def test_a_rounding_model_has_the_names_and_nearly_the_values(task_name: str) -> None:
    task = load_task(task_name)
    plain, rounded = task.model(1), rounding(task.model(1), Grid())
    assert list(dict(rounded.named_parameters())) == list(dict(plain.named_parameters()))
    x = torch.rand(3, *task.input.shape)
    torch.testing.assert_close(rounded(x), plain(x), atol=0.05, rtol=0.1)
    assert not torch.equal(rounded(x), plain(x))
    torch.testing.assert_close(functional_call(rounded, plain.state_dict(), (x,)), rounded(x))


def test_what_a_relu_follows_is_rounded_after_it() -> None:
    graph: Any = rounding(load_task("digits-cnn").model(), Grid())
    rounded = [str(node.args[0]) for node in graph.graph.nodes if "round" in node.name]
    assert "encoder_conv_relu" in rounded
    assert "encoder_conv" not in rounded
    assert "head" in rounded


class Branches(nn.Module):
    """Computes something else where its input says so."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x if x.sum() > 0 else -x)
        return logits


def test_a_model_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(InputError, match=r"quantize_aware: torch\.fx cannot trace"):
        rounding(Branches(), Grid())


NOISY = Task(
    "noisy", "digits", load_task("digits-cnn").input, load_task("digits-cnn").labels, Noisy,
    supervised, load_task("digits-cnn").loss, load_task("digits-cnn").metrics,
)  # fmt: skip
MAKES: dict[str, MakeObjective] = {
    "supervised": supervised,
    "fedprox": functools.partial(fedprox, mu=0.1),
    "scaffold": scaffold,
}


def trained(name: str, task: Task, make: MakeObjective) -> Partial:
    training = training_of(task, make_objective=make, batch_size=4)
    sizes = (7, 4, 10, 6, 2)  # no batch of one: statistics of it do not exist
    params = task.build(0)
    extras = training.objective(by_autograd).server.init(in_dtype(params, torch.float64))
    request = replace(request_for(task, params), extras=extras)
    return TRAINERS[name](training)(request, data_for(task, sizes))


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("task", [load_task("digits-cnn"), load_task("watch-lstm"), NOISY])
def test_the_vectorised_trainer_equals_the_loop(task: Task, make: str) -> None:
    own = functools.partial(quantize_aware, make=MAKES[make], grid=Grid(4))
    ours, theirs = trained("vectorised", task, own), trained("loop", task, own)
    assert [row.reason for row in theirs.rows] == [""] * 5
    for key, part in theirs.sums.items():
        torch.testing.assert_close(ours.sums[key].arrays, part.arrays, rtol=1e-9, atol=1e-12)
    plain = trained("loop", task, MAKES[make])
    weights = [part.sums["delta"].arrays["head.weight"] for part in (theirs, plain)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("name", ["fused", "low_rank", "reused"])
def test_the_special_trainers_step_aside(name: str) -> None:
    own = functools.partial(quantize_aware, make=supervised, grid=Grid())
    with pytest.raises(Unfit):
        partial_of(name, training_of(load_task("digits-cnn"), sgd(0.1), make_objective=own))


def test_a_step_is_taken_down_the_slope_at_the_rounded_weights() -> None:
    weights = torch.tensor([[0.3, -1.0]], requires_grad=True)
    loss = (round_weights(weights, 2) - 0.25).square().sum()
    (slope,) = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(slope, 2 * (torch.tensor([[0.0, -1.0]]) - 0.25))


def test_keys_have_defaults_and_belong_together() -> None:
    stage = parse_config(DIGITS + FINETUNE, "x").stage("finetune")
    assert (stage.weight_bits, stage.activation_bits, stage.weight_scales) == (8, 8, "exported")
    assert not stage.only_descends
    assert objective_of(stage, load_task("digits-cnn")) is not supervised
    plain = FINETUNE.replace("quantize_aware = true", "weight_bits = 4")
    with pytest.raises(ConfigError, match="weight_bits: is for quantize_aware"):
        parse_config(DIGITS + plain, "x")


def test_what_is_frozen_stays_and_is_rounded_too(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        DIGITS.replace("rounds = 4", "rounds = 1") + FINETUNE + 'freezes = ["encoder."]'
    )
    assert run(["simulate", str(path), "--out", str(tmp_path / "run")]) == 0
    before, after = (
        load_arrays(tmp_path / "run" / f"{name}.safetensors") for name in ("train", "finetune")
    )
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == ["head.bias", "head.weight"]


def test_the_benchmark_compares_both_ways() -> None:
    data = {"partition": "iid", "clients": 6, "max_examples_per_client": 20}
    stage = {"clients_per_round": 3, "local_learning_rate": 0.1}
    found = list(measure(Setting("digits-cnn", data, stage, rounds=1, more=1), [8, 2]))
    assert [(one.bits, one.scales) for one in found] == [
        (8, "channel"), (2, "channel"), (8, "tensor"), (2, "tensor"),
    ]  # fmt: skip
    assert all(0 <= one.ptq <= 1 for one in found)
    assert table(found).count("digits-cnn") == 4


@pytest.mark.parametrize("trainer", [pytest.param("loop", marks=pytest.mark.slow), "vectorised"])
def test_a_run_ends_in_files_that_pass_and_workers_change_no_byte(
    trainer: str, tmp_path: Path
) -> None:
    made = DIGITS.replace("rounds = 4", "rounds = 12").replace('"loop"', f'"{trainer}"')
    learned, exported = tmp_path / "learned.toml", tmp_path / "exported.toml"
    learned.write_text(made + FINETUNE)
    exported.write_text(f'{made}{FINETUNE}[[stages]]\nkind = "export"\nlatency_runs = 5\n')
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(["simulate", str(exported), "--out", str(one)]) == 0
    told = json.loads((one / "summary.json").read_text())["artefacts"]
    assert all(artefact["passed"] for artefact in told)
    assert any("int8" in artefact["file"] for artefact in told)
    done = wildflower("simulate", learned, "--out", two, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert sha256_of(one / "model.safetensors") == sha256_of(two / "model.safetensors")
