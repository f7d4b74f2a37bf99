"""U-Net, GAN, detector: what they compute, by hand; that a few rounds make them better."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from deploy.cli import run
from deploy.edge.answers import SCORINGS
from deploy.edge.bundle import write_bundle
from deploy.simulate import check
from shared_models.arrays import Arrays, roles_of
from shared_models.boxes import CELL, average_precision, decode, real_boxes
from shared_models.config import parse_config
from shared_models.datasets.load import load_dataset
from shared_models.datasets.voc import BOXES, PATCH
from shared_models.errors import DataError, InputError
from shared_models.frechet import LEAST, frechet_distance
from shared_models.gradients import by_autograd
from shared_models.models.gan import LATENT, PIXELS, Gan, noise_of_images
from shared_models.models.unet import UNet
from shared_models.objectives import Batch, Broadcast, Ground
from shared_models.objectives.gan import DISCRIMINATOR, GENERATOR
from shared_models.optimizers.sgd import sgd
from shared_models.tasks import load_task
from shared_models.tasks.detection import detection_loss, wanted
from shared_models.tasks.segmentation import overlap
from tests.conftest import DIGITS, ROOT
from tests.learning import learnt, overrides


def unet_parameters(channels: int, width: int, depth: int) -> int:
    """Counts by hand: 3x3 convolutions without a bias, two numbers a channel for each norm."""

    def block(ins: int, outs: int) -> int:
        return 9 * ins * outs + 9 * outs * outs + 4 * outs

    widths: list[int] = [width * 2**level for level in range(depth + 1)]
    down = sum(block(a, b) for a, b in zip([channels, *widths], widths, strict=False))
    up = sum(9 * 2 * own * own + own + block(2 * own, own) for own in widths[:-1])
    return down + up + width + 1


@pytest.mark.parametrize(("width", "depth"), [(8, 2), (16, 3), (64, 4)])
def test_a_unet_of_any_width_and_depth_has_its_count(width: int, depth: int) -> None:
    with torch.device("meta"):
        model = UNet(3, width, depth)
    assert sum(own.numel() for own in model.parameters()) == unet_parameters(3, width, depth)


def test_a_mask_is_as_large_as_its_image() -> None:
    assert UNet(1, width=4, depth=3)(torch.zeros(2, 1, 24, 40)).shape == (2, 1, 24, 40)


def test_overlap_by_hand() -> None:
    truth = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[0, 0, 0, 1]]])
    told = torch.tensor([[[[1.0, -1, 1, -1]]], [[[-1.0, -1, -1, -1]]], [[[1.0, -1, -1, -1]]]])
    found = overlap(told, truth)
    torch.testing.assert_close(found["iou"], torch.tensor([1 / 3, 1.0, 0.0]))
    torch.testing.assert_close(found["dice"], torch.tensor([0.5, 1.0, 0.0]))


def ground() -> Ground:
    task = load_task("mnist-gan")
    return Ground(task, sgd(0.1), by_autograd, roles_of(task.model()))


def doubled(arrays: Arrays) -> Arrays:
    return {name: t.double() if t.is_floating_point() else t for name, t in arrays.items()}


def play(model: Gan, real: Tensor, noise: dict[str, Tensor], rate: float) -> None:
    """Takes the step of Algorithm 1 in torch's own words."""
    cross_entropy, once = binary_cross_entropy_with_logits, copy.deepcopy(model.generator)
    made = once(noise[DISCRIMINATOR]).detach()
    ones, optimizer = torch.ones(len(real), 1).double(), torch.optim.SGD
    discriminator = optimizer(model.discriminator.parameters(), rate)
    told = cross_entropy(model.discriminator(real), ones)
    torch.autograd.backward(told + cross_entropy(model.discriminator(made), 0 * ones))
    discriminator.step()
    generator = optimizer(model.generator.parameters(), rate)
    fooled = model.discriminator(model.generator(noise[GENERATOR]))
    torch.autograd.backward(cross_entropy(fooled, ones))
    generator.step()


def test_two_steps_of_the_game_are_those_of_plain_torch() -> None:
    task, objective = load_task("mnist-gan"), load_task("mnist-gan").objective(ground())
    server = doubled(task.build(0))
    model = task.model(0).double().train()
    assert isinstance(model, Gan)
    x = torch.rand(2, 6, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    rng = np.random.default_rng(0)
    local = objective.begin(Broadcast(server, {}), {}, Batch(x[0], torch.zeros(6)))
    for own in x:
        batch = Batch(own, torch.zeros(6))
        noise = objective.draw(rng, batch)
        local, metrics = objective.step(local, batch, noise)
        play(model, own.flatten(1), noise, 0.1)
        model.zero_grad()
    assert set(metrics) == {"loss", "generator_loss"}
    sums, _, _ = objective.end(local)
    expected = model.state_dict()
    for name, delta in sums["delta"].items():
        torch.testing.assert_close(server[name] + delta, expected[name], rtol=1e-9, atol=1e-12)
    for name, own in sums["stats"].items():
        torch.testing.assert_close(own, expected[name], rtol=1e-9, atol=1e-12)


def test_a_last_batch_of_one_example_is_played() -> None:
    task, objective = load_task("mnist-gan"), load_task("mnist-gan").objective(ground())
    batch = Batch(torch.zeros(1, 1, 28, 28), torch.zeros(1))
    local = objective.begin(Broadcast(task.build(0), {}), {}, batch)
    _, metrics = objective.step(local, batch, objective.draw(np.random.default_rng(0), batch))
    assert torch.isfinite(metrics["loss"])


@pytest.mark.parametrize("name", ["mnist-gan", "mnist-vae"])
def test_an_objective_of_its_own_takes_no_other(name: str, tmp_path: Path) -> None:
    asked = (f"task='{name}'", "stages.train.objective='fedprox'", "stages.train.proximal_mu=0.1")
    config = parse_config(DIGITS, "x", overrides=asked)
    told = f"stages.train.objective: 'fedprox' cannot be: task '{name}' has an objective of its own"
    with pytest.raises(InputError, match=told):
        check(config, tmp_path / "run")


def test_noise_of_an_evaluation_is_normal_and_the_same_in_any_batch() -> None:
    rng = np.random.default_rng(0)
    shades = torch.from_numpy(rng.integers(0, 256, (400, PIXELS)).astype(np.float32))
    images = (shades - 127.5) / 127.5
    whole = noise_of_images(images)
    assert whole.shape == (400, LATENT)
    assert torch.equal(whole, torch.cat([noise_of_images(own) for own in torch.split(images, 7)]))
    assert abs(float(whole.mean())) < 0.02
    assert float(whole.std()) == pytest.approx(1.0, abs=0.02)
    assert float(torch.corrcoef(whole.T).fill_diagonal_(0).abs().max()) < 0.3


def test_the_distance_of_images_from_themselves_is_none_and_grows_with_noise() -> None:
    try:
        test = load_dataset("digits").test
    except DataError as error:
        pytest.skip(f"NO DIGITS: {error}")
    assert test is not None
    x = np.kron(np.asarray(test.x, np.float32), np.ones((3, 3)))[:, :, :] / 8 - 1
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)), constant_values=-1).reshape(len(x), PIXELS)
    real, labels = np.concatenate([x, x]), np.concatenate([test.y, test.y])
    assert len(real) >= LEAST
    noise = np.random.default_rng(0).standard_normal(real.shape)
    none, little, much = (frechet_distance(real + s * noise, real, labels) for s in (0, 0.2, 1.0))
    assert none == pytest.approx(0.0, abs=1e-3 * much)
    assert none < little < much


def one_box(left: int, top: int, right: int, bottom: int) -> Tensor:
    boxes = torch.zeros(1, BOXES, 4, dtype=torch.int64)
    boxes[0, 0] = torch.tensor([left, top, right, bottom])
    return boxes


def told(boxes: Tensor) -> Tensor:
    """Returns the numbers of a model that knows the boxes."""
    want = wanted(boxes, torch.zeros(len(boxes), 5, PATCH // CELL, PATCH // CELL))
    held = (want.held * 2 - 1)[:, None] * 20
    return torch.cat([held, torch.logit(want.place, eps=1e-6), want.size], dim=1)


def test_what_a_model_should_say_is_decoded_to_the_boxes() -> None:
    boxes = one_box(10, 20, 30, 50)
    (found,) = decode(told(boxes).numpy())
    np.testing.assert_allclose(found.boxes, [[10, 20, 30, 50]], atol=1e-3)
    assert average_precision([found], [real_boxes(boxes[0].numpy())]) == 1.0


def test_the_first_of_two_boxes_in_a_cell_is_held() -> None:
    boxes = one_box(0, 0, 8, 8)
    boxes[0, 1] = torch.tensor([4, 2, 16, 10])  # its centre is in the next cell
    boxes[0, 2] = torch.tensor([1, 1, 7, 7])
    want = wanted(boxes, torch.zeros(1, 5, 8, 8))
    assert want.held.sum() == 2
    torch.testing.assert_close(want.place[0, :, 0, 0], torch.tensor([0.5, 0.5]))


def test_the_loss_is_least_where_the_boxes_are() -> None:
    boxes = one_box(10, 20, 30, 50)
    right = detection_loss(told(boxes), boxes)
    assert right < detection_loss(told(one_box(12, 20, 32, 50)), boxes)
    assert right < detection_loss(told(one_box(10, 20, 36, 50)), boxes)
    assert right < detection_loss(torch.zeros(1, 5, 8, 8), boxes)


def test_boxes_are_scored_by_precision() -> None:
    boxes = one_box(10, 20, 30, 50)
    outputs, scoring = told(boxes).numpy(), SCORINGS["boxes"]
    assert scoring.score(outputs, boxes.numpy()) == 1.0
    assert scoring.agreement(np.concatenate([outputs, -outputs]), np.concatenate([outputs] * 2)) < 1


FEW = ("plan.trainer=loop", "stages.export.test_examples=200")


@pytest.mark.slow
def test_a_unet_finds_digits(tmp_path: Path) -> None:
    before, after = learnt("unet-masks", tmp_path / "run", overrides("train", 3, *FEW))
    assert before["iou"] < 0.1
    assert after["iou"] > 0.45  # the best threshold on brightness has 0.36


# Ray leaves processes and files to the end of its own process.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_noise_is_the_same_whoever_trains(tmp_path: Path) -> None:
    try:
        load_dataset("mnist")
    except DataError as error:
        pytest.skip(f"NO MNIST DATA: {error}")
    whole = (ROOT / "examples" / "gan-mnist.toml").read_text()
    (tmp_path / "gan.toml").write_text(whole.rpartition("\n[[stages]]")[0])
    few = ("stages.train.rounds=2", "data.max_examples_per_client=130", "plan.block_size=2")
    options = [word for own in (*few, "evaluate.data=none") for word in ("-s", own)]
    for name, *engine in (("inline",), ("ray", "--workers", "1"), ("ray", "--workers", "2")):
        out = tmp_path / "-".join((name, *engine))
        command = ["simulate", str(tmp_path / "gan.toml"), "--out", str(out), "--engine", name]
        assert run([*command, *engine, *options]) == 0
    made = {path.read_bytes() for path in tmp_path.glob("*/model.safetensors")}
    assert len(list(tmp_path.glob("*/model.safetensors"))) == 3
    assert len(made) == 1


@pytest.mark.slow
def test_a_generator_comes_nearer_to_digits(tmp_path: Path) -> None:
    few = overrides("train", 3, "data.max_examples_per_client=1000", *FEW)
    before, after = learnt("gan-mnist", tmp_path / "run", few)
    assert after["frechet_distance"] < 0.6 * before["frechet_distance"]


@pytest.mark.slow
def test_a_detector_finds_trees_on_a_device_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = learnt("trees-detector", tmp_path / "run", overrides("train", 3, *FEW))
    assert before["map50"] < 0.05
    assert after["map50"] > 2 * before["map50"]
    assert after["map50"] > 0.08
    export, device = tmp_path / "run" / "export", tmp_path / "device"
    capsys.readouterr()
    asked = ["--input", str(export / "reference.npz"), "--json"]
    assert run(["predict", str(export / "model-fp32.tflite"), *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    shutil.unpack_archive(write_bundle(export / "model-fp32.tflite"), device)
    command = [sys.executable, str(device / "example.py"), str(export / "reference.npz")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [len(boxes) for boxes in told] == [line.count(";") for line in said]
    assert max(len(boxes) for boxes in told) > 1
