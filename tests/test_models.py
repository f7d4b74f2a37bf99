"""The zoo: exact sizes, named parts, pure initialisation."""

from __future__ import annotations

import re

import pytest
import torch

from shared_models.errors import InputError
from shared_models.task import parameter_count
from shared_models.tasks import TASKS, load_task
from tests.conftest import ROOT

COUNTS = {
    "digits-cnn": 8_714,
    "fashion-cnn": 347_146,
    "fashion-unet": 32_681,
    "image-cnn-64": 684_490,
    "mnist-2nn": 199_210,
    "mnist-cnn": 347_146,
    "mnist-cnn-mcmahan": 1_663_370,
    "shakespeare-lstm": 798_720 + 265 * 76,
    "mnist-cnn-small": 43_706,
    # Convolutions of 3x3, a code of 32, kernels of 2x2 on the way back.
    "mnist-autoencoder": 160 + 4_640 + 1_568 * 32 + 32 + 33 * 1_568 + 2_064 + 65,
    # 784-200, a mean and a spread of 16 each, 16-200-784.
    "mnist-vae": 785 * 200 + 2 * 201 * 16 + 17 * 200 + 201 * 784,
    # 40-32-4-32-40.
    "motes-autoencoder": 41 * 32 + 33 * 4 + 5 * 32 + 33 * 40,
    # Two LSTMs of 64, each with two biases; 24 readings a step.
    "watch-autoencoder": 4 * 64 * (24 + 64 + 2) + 4 * 64 * (64 + 64 + 2) + 65 * 24,
    # 100-256-512-784 with two norms, and 784-512-256-1.
    "mnist-gan": 561_168 + 533_505,
    "mnist-unet": 32_681,
    "text-lstm": 2_757_890,
    "text-rnn": 2_609_666,
    "trees-detector": 98_005,
    "watch-cnn": 57_863,
    "watch-lstm": 18_887,
    "watch-lstm-small": 3_247,
}

PARTS = {
    "fashion-unet": {"encoder", "decoder", "head"},
    "mnist-unet": {"encoder", "decoder", "head"},
    "mnist-gan": {"generator", "discriminator"},
    "mnist-vae": {"encoder", "mean", "spread", "decoder"},
}
AUTOENCODERS = ("mnist-autoencoder", "motes-autoencoder", "watch-autoencoder")
PARTS |= {name: {"encoder", "decoder"} for name in AUTOENCODERS}
CLASSIFIERS = [name for name in TASKS if load_task(name).answer == "classes"]


def test_every_task_has_its_count_here() -> None:
    assert set(COUNTS) == set(TASKS)


def test_the_page_on_the_zoo_has_every_task_with_its_count() -> None:
    page = (ROOT / "docs" / "zoo.md").read_text()
    rows = re.findall(r"(?m)^\| `([\w-]+)` \| [^|]+ \| ([\d,]+) \|", page)
    assert {name: int(count.replace(",", "")) for name, count in rows} == COUNTS


@pytest.mark.parametrize("name", TASKS)
def test_parameter_count_is_exact(name: str) -> None:
    assert parameter_count(load_task(name)) == COUNTS[name]


@pytest.mark.parametrize("name", TASKS)
def test_parameter_names_carry_their_part(name: str) -> None:
    parts = {parameter.partition(".")[0] for parameter in load_task(name).build(0)}
    assert parts == PARTS.get(name, {"encoder", "head"})


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_sample_input_gives_one_logit_per_label(name: str) -> None:
    task = load_task(name)
    outputs = task.model()(torch.from_numpy(task.sample(3)))
    assert outputs.shape == (3, len(task.labels))


@pytest.mark.parametrize("name", [*AUTOENCODERS, "mnist-vae"])
def test_an_autoencoder_gives_what_it_is_given(name: str) -> None:
    task = load_task(name)
    assert task.model().eval()(torch.from_numpy(task.sample(3))).shape == (3, *task.input.shape)


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    task = load_task("digits-cnn")
    before = torch.random.get_rng_state()
    first, again, other = task.build(0), task.build(0), task.build(1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'mnist-cnn'"):
        load_task("mnist-cn")
