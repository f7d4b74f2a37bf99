"""Adversarial training: a client learns from the worst examples near its own.

Goodfellow et al., "Explaining and harnessing adversarial examples", ICLR 2015 (arXiv 1412.6572),
section 4, FGSM: one step of length epsilon, from the example itself. Madry et al., "Towards deep
learning models resistant to adversarial attacks", ICLR 2018 (arXiv 1706.06083), equation 2.1 and
section 2.1, PGD: several steps from a random place in the box, each back into it:

    x <- clip(x + a sign(grad_x L(w, x, y)), x_0 - epsilon, x_0 + epsilon)       a = 2.5 epsilon / K

The box is in units of model input, and images stay between black (0) and `InputSpec.white`. As in
Madry et al. a client descends on the perturbed examples alone; Goodfellow et al. mix in the clean
ones. Where a model keeps running statistics the attack sees those of its batch, and leaves no trace
in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from shared_models.arrays import Arrays
from shared_models.errors import InputError
from shared_models.gradients import Gradient
from shared_models.inputs import InputSpec
from shared_models.objectives import Batch, Ground, Metrics, Noise, Objective
from shared_models.objectives.local import Local, LocalTraining
from shared_models.task import as_labelled

if TYPE_CHECKING:
    from shared_models.task import Task

START = "adversarial.start"
_REACH = 2.5  # steps can cross the box: Madry et al., appendix A

LossOf: TypeAlias = Callable[[Tensor], Tensor]
"""The loss that an attacker wants large, a scalar, by the examples `(n, *shape)`."""


@dataclass(frozen=True)
class Attack:
    """How far an example may be moved, in units of model input, and in how many steps."""

    epsilon: float
    steps: int

    @property
    def starts_anywhere(self) -> bool:
        """Whether it begins at a random place: PGD does, FGSM does not."""
        return self.steps > 1


def attack_fault(task: Task) -> str | None:
    """Returns why nobody can attack a task's examples, or None."""
    if task.input.dtype != "float32":
        return f"task {task.name!r} takes tokens, of which there is no slightly other one"
    if task.target is not as_labelled:
        return f"task {task.name!r} has no labels that an attack could make its model miss"
    return None


def random_start(generator: np.random.Generator, x: Tensor) -> Tensor:
    """Returns where in the box an attack on `x` begins: from -1 to 1, in the shape of `x`."""
    place = torch.from_numpy(generator.uniform(-1.0, 1.0, tuple(x.shape)))
    return place.to(x.device, x.dtype)


def perturbed(
    loss_of: LossOf, x: Tensor, start: Tensor | None, how: Attack, about: tuple[InputSpec, Gradient]
) -> Tensor:
    """Returns examples like `x` of which the loss is larger, each inside its box.

    `start` is what `random_start` drew, or None; `about` says which inputs there are, and how to
    differentiate.
    """
    inputs, gradient = about
    low, high = _box(inputs, x, how.epsilon)
    step = how.epsilon * (_REACH / how.steps if how.starts_anywhere else 1.0)
    moved = x if start is None else (x + how.epsilon * start).clamp(low, high)
    for _ in range(how.steps):
        slope, _, _ = gradient(lambda own: (loss_of(own["x"]), {}), {"x": moved})
        moved = (moved + step * slope["x"].sign()).clamp(low, high)
    return moved


def _box(inputs: InputSpec, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Returns how low and how high each number may be moved.

    Examples that are not between black and white themselves are bounded by neither: as input that
    was standardised before, and spectrograms.
    """
    low, high = x - epsilon, x + epsilon
    if (bounds := _bounds(inputs, x)) is None:
        return low, high
    black, white = bounds
    is_image = ((x >= black) & (x <= white)).flatten(1).all(dim=1).reshape(-1, 1, 1, 1)
    return (
        torch.where(is_image, torch.maximum(low, black), low),
        torch.where(is_image, torch.minimum(high, white), high),
    )


def _bounds(inputs: InputSpec, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns black and white as model input, or None for what is no image."""
    if len(inputs.shape) != 3:
        return None
    ends = np.array([0.0, inputs.white], np.float32).reshape(2, *[1] * len(inputs.shape))
    scaled = (ends - np.array(inputs.mean, np.float32)) / np.array(inputs.std, np.float32)
    black, white = torch.from_numpy(scaled).to(x.device, x.dtype)
    return black, white


def adversarial(ground: Ground, attack: Attack) -> Objective:
    """Returns the objective; raises `InputError` where examples cannot be moved a little."""
    if fault := attack_fault(ground.task):
        raise InputError(f"objective: 'adversarial' cannot be: {fault}")
    training, anywhere = LocalTraining(ground), attack.starts_anywhere
    plain = training.objective()

    def draw(generator: np.random.Generator, batch: Batch) -> Noise:
        noise = plain.draw(generator, batch)
        return {**noise, START: random_start(generator, batch.x)}

    def step(local: Local, batch: Batch, noise: Noise) -> tuple[Local, Metrics]:
        own: Arrays = {name: values for name, values in noise.items() if name != START}

        def loss_of(x: Tensor) -> Tensor:
            return ground.task.loss(training.outputs(local, x, own), batch.y)

        about = ground.task.input, ground.gradient
        worst = perturbed(loss_of, batch.x, noise.get(START), attack, about)
        return training.step(local, Batch(worst, batch.y), own)

    return replace(plain, step=step, draw=draw if anywhere else plain.draw)
