"""Models for the table of formats: each learns for a minute in one place, by its own objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.edge.reference import Reference, meaning_of
from deploy.export.shipping import Shipped, shipped, targets_of
from shared_models.arrays import Arrays, add, roles_of
from shared_models.datasets.dataset import Dataset
from shared_models.datasets.load import load_task_data
from shared_models.gradients import by_autograd
from shared_models.objectives import Batch, Broadcast, Ground
from shared_models.optimizers.adam import adam
from shared_models.optimizers.clip import clip_by_norm
from shared_models.task import Task

_CALIBRATION = 200


@dataclass(frozen=True)
class Lesson:
    """How long a model is trained, and how many test examples it is asked."""

    steps: int = 1500
    learning_rate: float = 1e-3
    examples: int = 10_000
    batch_size: int = 64


# Of tasks that are learnt faster, or cost more, than the usual one.
LESSONS = {
    "digits-cnn": Lesson(steps=600),
    "fashion-unet": Lesson(steps=400, examples=1000),
    "image-cnn-64": Lesson(steps=400, examples=2000),
    "mnist-cnn-mcmahan": Lesson(steps=400),
    "mnist-gan": Lesson(learning_rate=2e-4, examples=1000),
    "mnist-unet": Lesson(steps=400, examples=1000),
    "shakespeare-lstm": Lesson(steps=1200, learning_rate=3e-3, examples=500),
    "trees-detector": Lesson(steps=400, batch_size=32),
    "watch-lstm": Lesson(steps=1000, learning_rate=3e-3),
    "watch-lstm-small": Lesson(steps=1000, learning_rate=3e-3),
}


@dataclass(frozen=True)
class Trained:
    """What goes to devices of a model, what calibrates its files, what they are compared with."""

    task: Task
    ships: Shipped
    calibration: NDArray[Any]
    reference: Reference

    @property
    def size_bytes(self) -> int:
        """What its weights take in float32."""
        return sum(4 * weights.numel() for weights in self.ships.model.parameters())


def train(task: Task, lesson: Lesson) -> Trained:
    """Returns a model that was trained by Adam on all of the training data, in no fleet."""
    data, rng = load_task_data(task, task.dataset), np.random.default_rng(0)
    model = task.model(0)
    model.load_state_dict(_learnt(task, lesson, data, rng), strict=False)
    ships = shipped(task, model.eval())
    if task.deployed is not None:
        calibration, test = (task.deployed.draw(rng, n) for n in (_CALIBRATION, lesson.examples))
        outputs = _answers(ships, test)
        right: NDArray[Any] = outputs
    else:
        calibration = data.train.x[_some(rng, data, _CALIBRATION)]
        split = data.test or data.train
        chosen = np.linspace(0, len(split) - 1, min(lesson.examples, len(split))).astype(np.int64)
        test = split.x[chosen]
        outputs = _answers(ships, test)
        right = targets_of(task, ships.input.prepare(test), split.y[chosen])
    meaning = meaning_of(task.labels, ships.input, task.answer)
    reference = Reference(test, right, outputs, task.answer, meaning)
    return Trained(task, ships, ships.input.prepare(calibration), reference)


def _learnt(task: Task, lesson: Lesson, data: Dataset, rng: np.random.Generator) -> Arrays:
    """Returns the arrays that training changes."""
    optimizer = clip_by_norm(1.0, adam(lesson.learning_rate))
    objective = task.objective(Ground(task, optimizer, by_autograd, roles_of(task.model())))
    start = task.build(0)
    local = objective.begin(Broadcast(start, {}), {}, _batch(task, data, np.arange(2)))
    for _ in range(lesson.steps):
        batch = _batch(task, data, _some(rng, data, lesson.batch_size))
        local, _ = objective.step(local, batch, objective.draw(rng, batch))
    sums, _, _ = objective.end(local)
    moved = {name: start[name] for name in sums["delta"]}
    return {**add(moved, sums["delta"]), **sums["stats"]}


def _some(rng: np.random.Generator, data: Dataset, count: int) -> NDArray[np.int64]:
    count = min(count, len(data.train))
    return np.sort(rng.choice(len(data.train), count, replace=False))


def _batch(task: Task, data: Dataset, chosen: NDArray[np.int64]) -> Batch:
    x, y = task.input.prepare(data.train.x[chosen]), data.train.y[chosen]
    return Batch(torch.from_numpy(x), torch.from_numpy(y))


def _answers(ships: Shipped, raw: NDArray[Any]) -> NDArray[np.float32]:
    parts = np.array_split(raw, len(raw) // 100 + 1)
    return np.concatenate([ask(ships.model, ships.input.prepare(part)) for part in parts])


@torch.inference_mode()
def ask(model: nn.Module, x: NDArray[Any]) -> NDArray[np.float32]:
    """Returns what a model says of its input."""
    outputs: NDArray[np.float32] = model(torch.from_numpy(x)).numpy()
    return outputs
