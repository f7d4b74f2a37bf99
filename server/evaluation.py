"""Central evaluation, on the server's device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.robustness import attacked_of
from shared_models.arrays import Arrays
from shared_models.config import Config
from shared_models.datasets.dataset import Split
from shared_models.datasets.load import check_fit, load_dataset, load_task_data
from shared_models.errors import InputError
from shared_models.labelled import UNLABELLED, has_label
from shared_models.measures import added_by, combined
from shared_models.objectives import Batch
from shared_models.objectives.pretext import shown
from shared_models.task import Task

Evaluator: TypeAlias = Callable[[Arrays], dict[str, float]]

# Prepared examples up to this size stay on their device from one evaluation to the next.
_KEPT_BYTES = {"cpu": 2**28, "cuda": 2**32}


def evaluation_split(config: Config, task: Task) -> Split | None:
    """Returns the examples to evaluate on, or None; `InputError` when there is no test split."""
    asked = config.evaluate.data
    if asked == "none":
        return None
    if asked != "test":
        own = load_dataset(asked)
        split = own.test or own.train
        check_fit(task, asked, split)
        if not has_label(split.y).all():
            raise InputError(
                f"evaluate.data: {asked} has examples without labels ({UNLABELLED}) and no test "
                "split (x_test, y_test); who measures needs all labels"
            )
        return split
    dataset = load_task_data(task, config.data.name, config.data.root)
    if dataset.test is None:
        raise InputError(
            f"evaluate.data: dataset {dataset.name!r} has no test split (x_test, y_test); "
            "give evaluate.data a path to an .npz, or 'none'"
        )
    return dataset.test


def pick_device(
    asked: Literal["auto", "cpu", "cuda", "mps"], key: str = "evaluate.device"
) -> torch.device:
    """Returns the device asked for (`auto`: cuda, mps, cpu); `InputError` if it is not there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if asked == "auto":
        return torch.device(next(name for name, found in there.items() if found))
    if not there[asked]:
        raise InputError(f"{key}: {asked!r} is not available on this machine; use 'cpu'")
    return torch.device(asked)


def evaluator_of(config: Config, task: Task) -> Evaluator | None:
    """Returns what measures the model as the config says, or None when the server does not."""
    split, asked = evaluation_split(config, task), config.evaluate
    if split is None:
        return None
    autocast = None if asked.autocast == "none" else getattr(torch, asked.autocast)
    device = pick_device(asked.device)
    evaluate = make_evaluator(task, split, device, asked.batch_size, autocast)
    attacked = attacked_of(config, task, split, device)
    if attacked is None:
        return evaluate
    return lambda params: {**evaluate(params), **attacked(params)}


def make_evaluator(
    task: Task,
    split: Split,
    device: torch.device,
    batch_size: int,
    autocast: torch.dtype | None = None,
) -> Evaluator:
    """Returns a function from weights to `loss` and the task's metrics, of all examples.

    With `autocast` the model runs in that dtype where torch deems it safe; what it returns is
    measured in the dtype of the weights.
    """
    model = task.model().eval().to(device)
    batches = _batches(task, split, device, batch_size)

    @torch.inference_mode()
    def evaluate(params: Arrays) -> dict[str, float]:
        weights = {name: _to(device, tensor) for name, tensor in params.items()}
        dtype = next(iter(weights.values())).dtype
        found: list[dict[str, Tensor]] = []
        sizes: list[int] = []
        for x, y in batches():
            inputs = x.to(dtype) if x.is_floating_point() else x
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                outputs = task.apply(model, weights, inputs)
            found.append(added_by(task, outputs.to(dtype), Batch(inputs, y)))
            sizes.append(len(y))
        return combined(task, found, sizes)

    return evaluate


def _batches(
    task: Task, split: Split, device: torch.device, size: int
) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Returns what yields all examples on the device: made ready once where they may stay there."""

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(split), size):
            index = np.arange(start, min(start + size, len(split)))
            x, y = task.input.prepare(split.x[index]), split.y[index]
            batch = shown(task, Batch(_own(x, device), _own(y, device)), start)
            yield _to(device, batch.x), _to(device, batch.y)

    example = math.prod(task.input.shape) * np.dtype(task.input.dtype).itemsize
    if len(split) * example > _KEPT_BYTES.get(device.type, _KEPT_BYTES["cpu"]):
        return stream
    kept = list(stream())
    return lambda: kept


def _own(values: NDArray[Any], device: torch.device) -> Tensor:
    """Returns a copy in torch's memory; for a GPU it is pinned, so that nobody waits for it."""
    # numpy aligns memory less: sums in a CPU's products depend on that.
    return torch.tensor(values, pin_memory=device.type == "cuda")


def _to(device: torch.device, tensor: Tensor) -> Tensor:
    # Channels last: torch pools such images with vector instructions, five times faster on a CPU.
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, memory_format=layout, non_blocking=device.type == "cuda")
