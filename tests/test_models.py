"""The zoo: exact sizes, named parts, pure initialisation."""

from __future__ import annotations

import pytest
import torch

from shared_models.errors import InputError
from shared_models.task import parameter_count
from shared_models.tasks import TASKS, load_task

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
}
CLASSIFIERS = [name for name in TASKS if load_task(name).answer == "classes"]


def test_every_task_has_its_count_here() -> None:
    assert set(COUNTS) == set(TASKS)


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
