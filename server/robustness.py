"""How much of a model's accuracy is left when its examples are attacked.

Projected gradient descent, Madry et al. 2018 (arXiv 1706.06083), on examples that are spread over
the test split, always the same ones from the same random starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from shared_models.arrays import Arrays, to_device
from shared_models.config import Config
from shared_models.datasets.dataset import Split
from shared_models.errors import InputError
from shared_models.gradients import by_autograd
from shared_models.objectives import Batch
from shared_models.objectives.adversarial import Attack, attack_fault, perturbed, random_start
from shared_models.randomness import generator
from shared_models.task import Task

Attacked: TypeAlias = Callable[[Arrays], Mapping[str, float]]

_STEPS, _EXAMPLES, _BATCH = 10, 1000, 100


def check_attack(config: Config, task: Task) -> None:
    """Raises `InputError` where the config asks for attacks on examples that nobody can attack."""
    fault = attack_fault(task)
    if fault and config.evaluate.adversarial_epsilon is not None:
        raise InputError(f"evaluate.adversarial_epsilon: {fault}")


def attacked_of(config: Config, task: Task, split: Split, device: torch.device) -> Attacked | None:
    """Returns what attacks the model as the config says, or None where it says nothing.

    Raises `InputError` for a task whose examples nobody can attack.
    """
    asked = config.evaluate
    if asked.adversarial_epsilon is None:
        return None
    check_attack(config, task)
    attack = Attack(asked.adversarial_epsilon, asked.adversarial_steps or _STEPS)
    count = min(asked.adversarial_examples or _EXAMPLES, len(split))
    spread = np.linspace(0, len(split) - 1, count).astype(np.int64)
    chosen = Split(split.x[spread], split.y[spread])
    return make_attacked(task, chosen, attack, device)


def make_attacked(task: Task, split: Split, attack: Attack, device: torch.device) -> Attacked:
    """Returns a function from weights to the task's metrics under attack, `robust_` before each."""
    model = task.model().eval().to(device)

    def attacked(params: Arrays) -> dict[str, float]:
        # Copies: tensors made in inference mode could not be differentiated through.
        weights = {name: own.clone() for name, own in to_device(params, device).items()}
        dtype = next(own.dtype for own in weights.values() if own.is_floating_point())
        totals: dict[str, float] = {}
        for batch, start in _batches(task, split, attack, device):
            x, place = batch.x.to(dtype), None if start is None else start.to(dtype)

            def loss_of(moved: Tensor, y: Tensor = batch.y) -> Tensor:
                return task.loss(task.apply(model, weights, moved), y)

            worst = perturbed(loss_of, x, place, attack, (task.input, by_autograd))
            with torch.no_grad():
                found = task.metrics(task.apply(model, weights, worst), batch.y)
            for name, values in found.items():
                totals[name] = totals.get(name, 0.0) + float(values.sum())
        return {f"robust_{name}": total / len(split) for name, total in totals.items()}

    return attacked


def _batches(
    task: Task, split: Split, attack: Attack, device: torch.device
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Yields examples, and where the attack on them begins."""
    for first in range(0, len(split), _BATCH):
        index = np.arange(first, min(first + _BATCH, len(split)))
        # Own memory: numpy aligns less, and sums in a CPU's products depend on that.
        x = torch.tensor(task.input.prepare(split.x[index]), device=device)
        y = torch.tensor(split.y[index], device=device)
        start = random_start(generator(0, "attack", first), x) if attack.starts_anywhere else None
        yield Batch(x, y), start
