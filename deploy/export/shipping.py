"""What of a trained model goes to devices, and what its files are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.edge.reference import Reference, meaning_of
from server.evaluation import evaluation_split
from shared_models.config import Config, ExportStage
from shared_models.datasets.load import load_task_data
from shared_models.errors import DataError, ExportError, InputError
from shared_models.inputs import InputSpec
from shared_models.randomness import generator
from shared_models.task import Task

_BATCH = 100


@dataclass(frozen=True)
class Shipped:
    """A model, or the part of it that goes to devices, and what that takes."""

    model: nn.Module
    input: InputSpec


def shipped(task: Task, model: nn.Module) -> Shipped:
    """Returns what of a task's model goes to devices."""
    if task.deployed is None:
        return Shipped(model, task.input)
    return Shipped(model.get_submodule(task.deployed.part), task.deployed.input)


def reference_of(config: Config, stage: ExportStage, task: Task, ours: Shipped) -> Reference:
    """Returns test examples and what torch says of them; `ExportError` when there are none.

    Where examples are drawn there is no truth but what torch says.
    """
    meaning = meaning_of(task.labels, ours.input, task.answer)
    if task.deployed is not None:
        rng = generator(config.seed, stage.name, "reference")
        drawn = task.deployed.draw(rng, stage.test_examples)
        said = _said(ours, drawn)
        return Reference(drawn, said, said, task.answer, meaning)
    split = evaluation_split(config, task)
    if split is None:
        raise ExportError(
            "export needs test data to measure its files on: "
            "set evaluate.data to 'test' or to a path ending in .npz"
        )
    count = min(stage.test_examples, len(split))
    spread = np.linspace(0, len(split) - 1, count).astype(np.int64)
    x = split.x[spread]
    targets = targets_of(task, ours.input.prepare(x), split.y[spread])
    return Reference(x, targets, _said(ours, x), task.answer, meaning)


def words_of(config: Config, task: Task) -> str:
    """Returns the vocabulary of the tokens that were trained on, with spaces between.

    Empty where a task takes no words, or where the data is with the clients alone.
    """
    if task.input.dtype != "int64":
        return ""
    try:
        return load_task_data(task, config.data.name, config.data.root).words
    except (DataError, InputError):
        return ""


def targets_of(
    task: Task, x: NDArray[np.float32], y: NDArray[np.int64]
) -> NDArray[np.float32] | NDArray[np.int64]:
    """Returns what is right for prepared examples."""
    found: NDArray[np.float32] = task.target(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    return found


@torch.inference_mode()
def _said(ours: Shipped, raw: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = [
        ours.model(torch.from_numpy(ours.input.prepare(part))).numpy()
        for part in np.array_split(raw, max(1, len(raw) // _BATCH))
    ]
    return np.concatenate(parts)
