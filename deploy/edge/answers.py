"""How answers are scored against the truth and compared with torch's; numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.edge.runtimes import Floats
from shared_models.answers import Answer
from shared_models.boxes import average_precision, decode, real_boxes

_EXPLAINS = 0.95


@dataclass(frozen=True)
class Scoring:
    """What is measured of one kind of answer.

    * `metric`: the score's name; `score(outputs, targets)`: at most 1, more is better.
    * `agreement(outputs, expected)`: from 0 to 1, how much of torch's outputs these are.
    """

    metric: str
    score: Callable[[Floats, NDArray[Any]], float]
    agreement: Callable[[Floats, Floats], float]


def classes_in(outputs: Floats) -> NDArray[np.int64]:
    """Returns the class of each example, or of each pixel of it: axis 1 goes away.

    >>> classes_in(np.array([[0.1, 0.7], [0.6, 0.2]])).tolist()
    [1, 0]
    """
    if outputs.shape[1] > 1:
        return np.asarray(outputs.argmax(axis=1))
    return (outputs[:, 0] > 0).astype(np.int64)


def _accuracy(outputs: Floats, targets: NDArray[Any]) -> float:
    return float((classes_in(outputs) == targets).mean())


def _same_classes(outputs: Floats, expected: Floats) -> float:
    return float((classes_in(outputs) == classes_in(expected)).mean())


def mean_iou(outputs: Floats, targets: NDArray[Any]) -> float:
    """Returns intersection over union of pixels, the mean over the classes that are there.

    >>> mean_iou(np.array([[[[1.0, 1.0, -1.0]]]]), np.array([[[1, 0, 0]]]))
    0.5
    """
    told = classes_in(outputs)
    there = np.union1d(told, targets)
    shares = [
        ((told == k) & (targets == k)).sum() / ((told == k) | (targets == k)).sum() for k in there
    ]
    return float(np.mean(shares))


def explained_variance(outputs: Floats, targets: NDArray[Any]) -> float:
    """Returns R^2: how much of the targets' variance around their mean the outputs explain.

    >>> explained_variance(np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]))
    0.5
    """
    truth = targets.astype(np.float64)
    spread = float(np.square(truth - truth.mean(axis=0)).sum())
    error = float(np.square(outputs - truth).sum())
    if spread > 0.0:
        return 1.0 - error / spread
    return 1.0 if error == 0.0 else 0.0


def _explaining(outputs: Floats, expected: Floats) -> float:
    """Returns the share of examples whose output explains torch's.

    An example's squared error is held against the mean squared distance of torch's outputs from
    their mean: its own distance would ask the most where an example is nearest to that mean.
    """
    flat = expected.reshape(len(expected), -1).astype(np.float64)
    error = np.square(outputs.reshape(flat.shape) - flat).sum(axis=1)
    spread = np.square(flat - flat.mean(axis=0)).sum(axis=1).mean()
    return float((error <= (1.0 - _EXPLAINS) * spread).mean())


def mean_precision(outputs: Floats, targets: NDArray[Any]) -> float:
    """Returns the average precision at an overlap of 0.5, 0 where there is nothing to be found."""
    truths = [real_boxes(own) for own in targets]
    return float(np.nan_to_num(average_precision(decode(outputs), truths)))


SCORINGS: Mapping[Answer, Scoring] = {
    "classes": Scoring("accuracy", _accuracy, _same_classes),
    "mask": Scoring("mean_iou", mean_iou, _same_classes),
    "values": Scoring("explained_variance", explained_variance, _explaining),
    "boxes": Scoring("map50", mean_precision, _explaining),
}
