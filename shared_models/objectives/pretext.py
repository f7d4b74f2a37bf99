"""Local training without labels: what all self-supervised objectives share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from shared_models.errors import InputError
from shared_models.models.parts import MakeModel
from shared_models.objectives import Batch, Ground, Metrics, Noise, Objective, View, no_noise
from shared_models.objectives.local import Local, LocalTraining
from shared_models.randomness import generator
from shared_models.task import Task

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_VIEW = "view."


def pretext(ground: Ground) -> Objective:
    """Returns the objective that descends on the task's loss over what its `view` shows.

    The view's noise and the model's own go into a step side by side, the view's as `view.<name>`.
    """
    training, view = LocalTraining(ground), ground.task.view
    assert view is not None  # noqa: S101 - who makes such a task gives it a view
    plain = training.objective()

    def draw(rng: np.random.Generator, batch: Batch) -> Noise:
        own = {_VIEW + name: noise for name, noise in view.draw(rng, batch).items()}
        if plain.draw is no_noise:
            return own
        examples = view.show(batch, _own(own)).x  # may be more than the batch has
        return {**own, **plain.draw(rng, Batch(examples, examples))}

    def step(local: Local, batch: Batch, noise: Noise) -> tuple[Local, Metrics]:
        others = {name: own for name, own in noise.items() if not name.startswith(_VIEW)}
        return training.step(local, view.show(batch, _own(noise)), others)

    return replace(plain, draw=draw, step=step)


def _own(noise: Noise) -> Noise:
    return {k.removeprefix(_VIEW): own for k, own in noise.items() if k.startswith(_VIEW)}


def shown(task: Task, batch: Batch, number: int) -> Batch:
    """Returns what the model is to be evaluated on: of batch `number` always the same view."""
    if task.view is None:
        return batch
    return task.view.show(batch, task.view.draw(generator(0, "evaluation", number), batch))


def no_metrics(_: Tensor, __: Tensor) -> dict[str, Tensor]:
    """Measures nothing besides the loss: without labels there is no right or wrong."""
    return {}


def like(x: Tensor, noise: Noise) -> Noise:
    """Returns noise in the dtype and on the device of the examples."""
    return {name: own.to(x.device, x.dtype) for name, own in noise.items()}


def with_pretext(task: Task, make_model: MakeModel, view: View, loss: Loss) -> Task:
    """Returns the task of learning this model without labels; of the given one stays its data."""
    return Task(
        name=task.name,
        dataset=task.dataset,
        input=task.input,
        labels=task.labels,
        make_model=make_model,
        objective=pretext,
        loss=loss,
        metrics=no_metrics,
        view=view,
    )


def require_numbers(task: Task, objective: str) -> None:
    """Raises `InputError` when the input is tokens, which nothing can be added to or hidden in."""
    if task.input.dtype != "float32" or len(task.input.shape) not in (2, 3):
        raise InputError(
            f"objective: {objective!r} is for images and windows of sensors, not for the input of "
            f"{task.name!r}"
        )


def zeros(batch: Batch) -> Tensor:
    """Returns one number for each example, for losses that compare outputs with each other."""
    return torch.zeros(len(batch.x), dtype=batch.x.dtype, device=batch.x.device)
