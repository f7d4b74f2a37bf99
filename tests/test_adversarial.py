"""Adversarial training: attacks stay in their box and hurt, and training on them helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deploy.cli import run
from server.robustness import check_attack, make_attacked
from server.run_folder import RunFolder
from shared_models.arrays import load_arrays, roles_of
from shared_models.config import parse_config
from shared_models.datasets.dataset import Split
from shared_models.datasets.load import load_dataset
from shared_models.errors import ConfigError, InputError
from shared_models.files import sha256_of
from shared_models.gradients import Gradient, by_autograd, by_transform
from shared_models.objectives import Ground
from shared_models.objectives.adversarial import Attack, perturbed, random_start
from shared_models.objectives.choice import objective_of
from shared_models.optimizers.sgd import sgd
from shared_models.task import Task
from shared_models.tasks import load_task
from tests.conftest import DIGITS
from tests.test_runs import simulate, wildflower

TASK = load_task("digits-cnn")
ADVERSARIAL = DIGITS + 'objective = "adversarial"\nadversarial_epsilon = 0.1\n'
ROBUST = "\n[evaluate]\nadversarial_epsilon = 0.1\n"


def held_out() -> Split:
    test = load_dataset("digits").test
    assert test is not None
    return test


def some(count: int = 20) -> tuple[Tensor, Tensor]:
    test = held_out()
    index = np.arange(count)
    return torch.tensor(TASK.input.prepare(test.x[index])), torch.tensor(test.y[index])


def attacked(task: Task, how: Attack, gradient: Gradient = by_autograd) -> tuple[Tensor, Tensor]:
    model = task.model().eval()
    x, y = some()
    start = random_start(np.random.default_rng(0), x) if how.starts_anywhere else None
    about = task.input, gradient
    worst = perturbed(lambda own: task.loss(model(own), y), x, start, how, about)
    return x, worst


@pytest.mark.parametrize("steps", [1, 7])
def test_an_attack_stays_in_its_box_and_makes_the_loss_larger(steps: int) -> None:
    x, worst = attacked(TASK, Attack(0.1, steps))
    assert (worst - x).abs().max() <= 0.1 + 1e-6
    assert 0.0 <= worst.min() <= worst.max() <= 1.0
    model, (_, y) = TASK.model().eval(), some()
    assert TASK.loss(model(worst), y) > TASK.loss(model(x), y)


def test_fgsm_is_one_step_along_the_sign_of_the_slope() -> None:
    (x, worst), (_, y), model = attacked(TASK, Attack(0.05, 1)), some(), TASK.model().eval()
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(TASK.loss(model(leaf), y), leaf)
    assert torch.equal(worst, (x + 0.05 * slope.sign()).clamp(0.0, 1.0).clamp(x - 0.05, x + 0.05))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_lies_beyond_black_or_white_is_bounded_by_neither(sign: float) -> None:
    dark_and_light = torch.tensor([0.02, 0.98]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    x = torch.cat([dark_and_light, dark_and_light])
    x[2:, 0, 0, 0] = -1.0
    about = TASK.input, by_autograd
    worst = perturbed(lambda own: sign * own.sum(), x, None, Attack(0.1, 1), about)
    assert 0.0 <= worst[:2].min() <= worst[:2].max() <= 1.0
    torch.testing.assert_close(worst[2:], x[2:] + 0.1 * sign)


def test_both_ways_to_the_gradient_attack_alike() -> None:
    (_, one), (_, other) = [
        attacked(TASK, Attack(0.1, 3), way) for way in (by_autograd, by_transform)
    ]
    assert torch.equal(one, other)


def test_training_on_attacks_leaves_more_accuracy_under_them(tmp_path: Path) -> None:
    robust = {}
    for name, text in (("plain", DIGITS), ("hardened", ADVERSARIAL)):
        (tmp_path / f"{name}.toml").write_text(text.replace("rounds = 4", "rounds = 12") + ROBUST)
        assert run(["simulate", str(tmp_path / f"{name}.toml"), "--out", str(tmp_path / name)]) == 0
        records = RunFolder(tmp_path / name).records()
        first, last = records[0].eval, records[-1].eval
        assert first is not None
        assert last is not None
        assert last["accuracy"] > first["accuracy"]
        robust[name] = last["robust_accuracy"]
        arrays = load_arrays(tmp_path / name / "model.safetensors")
        again = make_attacked(TASK, held_out(), Attack(0.1, 10), torch.device("cpu"))(arrays)
        assert again["robust_accuracy"] == pytest.approx(last["robust_accuracy"], abs=1e-9)
    assert robust["hardened"] > robust["plain"] + 0.1


@pytest.mark.slow
def test_workers_change_no_byte(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(ADVERSARIAL.replace("rounds = 4", "rounds = 2"))
    alone = simulate(tmp_path / "a.toml", tmp_path / "alone")
    done = wildflower("simulate", tmp_path / "a.toml", "--out", tmp_path / "ray", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "ray" / "model.safetensors") == alone


@pytest.mark.parametrize(
    ("name", "told", "first"),
    [
        ("text-rnn", "takes tokens", "takes tokens"),
        ("mnist-autoencoder", "has no labels", "has no labels"),
        ("mnist-vae", "has no labels", "has an objective of its own"),
        ("mnist-gan", "has no labels", "has an objective of its own"),
    ],
)
def test_what_cannot_be_attacked_is_named(name: str, told: str, first: str) -> None:
    config, task = parse_config(ADVERSARIAL + ROBUST, "x"), load_task(name)
    ground = Ground(task, sgd(0.1), by_autograd, roles_of(task.model(), ()))
    with pytest.raises(InputError, match=f"'adversarial' cannot be: task '{name}' {first}"):
        objective_of(config.learning_stages[0], task)(ground)
    with pytest.raises(InputError, match=f"evaluate.adversarial_epsilon: task '{name}' {told}"):
        check_attack(config, task)


def test_keys_of_an_attack_say_what_they_are_for() -> None:
    assert parse_config(ADVERSARIAL, "x").learning_stages[0].adversarial_steps == 7
    with pytest.raises(ConfigError, match="adversarial_epsilon: is missing"):
        parse_config(DIGITS + 'objective = "adversarial"\n', "x")
    with pytest.raises(ConfigError, match="adversarial_steps: contradicts objective 'fedavg'"):
        parse_config(DIGITS + "adversarial_steps = 2\n", "x")
    with pytest.raises(ConfigError, match="adversarial_steps: is for adversarial_epsilon"):
        parse_config(DIGITS + "\n[evaluate]\nadversarial_steps = 2\n", "x")
