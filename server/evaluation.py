"""Central evaluation, on the server's device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import torch

from shared_models.arrays import Arrays
from shared_models.config import Config
from shared_models.datasets.dataset import Split
from shared_models.datasets.load import check_fit, load_dataset, load_task_data
from shared_models.errors import InputError
from shared_models.task import Task

Evaluator: TypeAlias = Callable[[Arrays], dict[str, float]]


def evaluation_split(config: Config, task: Task) -> Split | None:
    """Returns the examples to evaluate on, or None; `InputError` when there is no test split."""
    asked = config.evaluate.data
    if asked == "none":
        return None
    if asked != "test":
        own = load_dataset(asked)
        split = own.test or own.train
        check_fit(task, asked, split)
        return split
    dataset = load_task_data(task, config.data.name, config.data.root)
    if dataset.test is None:
        raise InputError(
            f"evaluate.data: dataset {dataset.name!r} has no test split (x_test, y_test); "
            "give evaluate.data a path to an .npz, or 'none'"
        )
    return dataset.test


def pick_device(asked: Literal["auto", "cpu", "cuda", "mps"]) -> torch.device:
    """Returns the device asked for (`auto`: cuda, mps, cpu); `InputError` if it is not there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if asked == "auto":
        return torch.device(next(name for name, found in there.items() if found))
    if not there[asked]:
        raise InputError(f"evaluate.device: {asked!r} is not available on this machine; use 'auto'")
    return torch.device(asked)


def make_evaluator(task: Task, split: Split, device: torch.device, batch_size: int) -> Evaluator:
    """Returns a function from weights to `loss` and the task's metrics, means over all examples."""
    model = task.model().eval().to(device)

    @torch.inference_mode()
    def evaluate(params: Arrays) -> dict[str, float]:
        weights = {name: _to(device, tensor) for name, tensor in params.items()}
        dtype = next(iter(weights.values())).dtype
        totals: dict[str, float] = {}
        for start in range(0, len(split), batch_size):
            index = np.arange(start, min(start + batch_size, len(split)))
            x = _to(device, torch.from_numpy(task.input.prepare(split.x[index])))
            y = torch.from_numpy(split.y[index]).to(device)
            outputs = task.apply(model, weights, x.to(dtype) if x.is_floating_point() else x)
            for name, value in _totals(task, outputs, y).items():
                totals[name] = totals.get(name, 0.0) + value
        return {name: total / len(split) for name, total in totals.items()}

    return evaluate


def _totals(task: Task, outputs: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    metrics = task.metrics(outputs, y)
    loss = float(task.loss(outputs, y)) * len(y)
    return {"loss": loss, **{name: float(values.sum()) for name, values in metrics.items()}}


def _to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    # Channels last: torch pools such images with vector instructions, five times faster on a CPU.
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, memory_format=layout)
