"""What an evaluation tells: means over examples, and metrics of a whole set that are no mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared_models.labelled import UNLABELLED
from shared_models.objectives import Batch

if TYPE_CHECKING:
    from shared_models.task import Task


@dataclass(frozen=True)
class Pooled:
    """A metric of a whole set of examples that is no mean over them.

    * `rows(outputs, targets, y)`: what a batch adds, `(m, ...)`, with as many rows as it likes: one
      an example for a ranking, a single one for sums.
    * `value(rows)`: the metric of the rows of all batches, NaN where it is not defined.
    """

    rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    value: Callable[[NDArray[Any]], float]


def added_by(task: Task, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Returns what a batch adds to an evaluation, where its tensors are, so that nobody waits.

    That is its mean loss, the rows of pooled metrics and the sums of the others.
    """
    targets = task.target(batch.x, batch.y)
    pooled = {name: own.rows(outputs, targets, batch.y) for name, own in task.pooled.items()}
    sums = {name: values.sum() for name, values in task.metrics(outputs, targets).items()}
    return {"loss": task.loss(outputs, targets), **pooled, **sums}


def combined(
    task: Task, added: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]
) -> dict[str, float]:
    """Returns the loss, then each metric, of a set whose batches of these sizes have added that.

    A metric that is not defined for the set is left out.
    """
    told: dict[str, float] = {}
    for name in added[0]:
        if name in task.pooled:
            rows = torch.cat([own[name] for own in added]).cpu().numpy()
            value = task.pooled[name].value(rows)
        else:
            value = _mean([own[name] for own in added], sizes, of_means=name == "loss")
        # A model that has diverged has no finite loss either: that is for the caller to see.
        if not (name in task.pooled and math.isnan(value)):
            told[name] = value
    return told


def _mean(values: Sequence[Tensor], sizes: Sequence[int], *, of_means: bool) -> float:
    total = 0.0
    for value, size in zip(torch.stack(list(values)).tolist(), sizes, strict=True):
        total += value * size if of_means else value
    return total / sum(sizes)


def _powers(outputs: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    """Returns one row: how many examples, the squared error, then of each number sum and square."""
    kept = torch.promote_types(outputs.dtype, torch.float32)
    truth = targets.flatten(1).to(kept)
    error = (outputs.flatten(1).to(kept) - truth).square().sum()
    count = truth.new_tensor(float(len(truth)))
    return torch.cat([torch.stack([count, error]), truth.sum(0), truth.square().sum(0)])[None]


def _explained(rows: NDArray[Any]) -> float:
    count, error, *rest = rows.astype(np.float64).sum(axis=0)
    first, second = np.split(np.array(rest), 2)
    around_mean = float((second - first**2 / count).sum())
    return 1.0 - float(error) / around_mean if around_mean > 0.0 else math.nan


EXPLAINED = Pooled(_powers, _explained)
"""How much of the targets' variance around their mean the outputs explain (R^2), over all numbers:
1 - squared error / squared distance to the mean target. 0 is what the mean itself gets."""


def _errors(outputs: Tensor, targets: Tensor, y: Tensor) -> Tensor:
    """Returns a row an example: its mean squared error, and its label."""
    error = (outputs - targets).square().flatten(1).mean(dim=1)
    return torch.stack([error, y.to(error.dtype)], dim=1)


def roc_auc(rows: NDArray[Any]) -> float:
    """Returns how often an example of label 1 has a larger score than one of label 0, ties half.

    `rows` are pairs of score and label, -1 for who has none and is not counted; NaN where one of
    the two labels is missing (Hanley and McNeil 1982).

    >>> roc_auc(np.array([[0.1, 0.0], [0.4, 0.0], [0.4, 1.0], [0.9, 1.0]]))
    0.875
    """
    rows = rows[rows[:, 1] != UNLABELLED]
    scores, positive = rows[:, 0], rows[:, 1] > 0
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    ours, theirs = int(positive.sum()), int((~positive).sum())
    if not ours or not theirs or np.isnan(scores).any():
        return math.nan
    return float((ranks[positive].sum() - ours * (ours + 1) / 2) / (ours * theirs))


ANOMALY_AUC = Pooled(_errors, roc_auc)
"""Area under the ROC curve of an autoencoder's error as the score of what is unusual, label 1."""


def _overlaps(outputs: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    """Returns one row `(2, classes)`: pixels that are a class in both, and in either."""
    classes = max(2, outputs.shape[1])
    told = outputs.argmax(dim=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
    each = torch.arange(classes, device=told.device).reshape(-1, *[1] * told.ndim)
    ours, theirs = told == each, targets == each
    both, either = (found.flatten(1).sum(dim=1) for found in (ours & theirs, ours | theirs))
    return torch.stack([both, either])[None]


def _mean_iou(rows: NDArray[Any]) -> float:
    both, either = rows.astype(np.float64).sum(axis=0)
    there = either > 0
    return float((both[there] / either[there]).mean()) if there.any() else math.nan


MEAN_IOU = Pooled(_overlaps, _mean_iou)
"""Intersection over union of pixels `(n, h, w)`, the mean over the classes that are there."""
