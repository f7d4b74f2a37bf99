"""Detection: where in an image things of one kind are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from shared_models.boxes import CELL, NUMBERS, USUAL, average_precision, decode, real_boxes
from shared_models.datasets.voc import BOXES, PATCH
from shared_models.inputs import InputSpec
from shared_models.measures import Pooled
from shared_models.models.detector import Detector
from shared_models.objectives.supervised import supervised
from shared_models.task import Task

_PHOTOGRAPHS = InputSpec(shape=(3, PATCH, PATCH), mean=(128.0,), std=(52.0,))
_SIDE = PATCH // CELL


class Wanted(NamedTuple):
    """What cells should say: `(n, rows, columns)` if they hold a box, and four numbers if so."""

    held: Tensor
    place: Tensor
    size: Tensor


def wanted(boxes: Tensor, like: Tensor) -> Wanted:
    """Returns what a model of outputs `like` `(n, 5, rows, columns)` should say of `(n, k, 4)`.

    The cell that a box's centre is in holds it; of several the first.
    """
    own = boxes.to(like.dtype)
    sides, centres = own[..., 2:] - own[..., :2], (own[..., 2:] + own[..., :2]) / (2 * CELL)
    cells = centres.floor()
    rows, columns = (torch.arange(size, device=like.device) for size in like.shape[2:])
    in_row = cells[..., 1, None, None] == rows[:, None]
    in_column = cells[..., 0, None, None] == columns
    holds = in_row & in_column & (sides > 0).all(-1)[..., None, None]
    first = (holds & (holds.cumsum(1) == 1)).to(like.dtype)
    place = torch.einsum("nkrc,nkd->ndrc", first, centres - cells)
    size = torch.einsum("nkrc,nkd->ndrc", first, (sides.clamp(min=1.0) / USUAL).log())
    return Wanted(first.sum(1), place, size)


def detection_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean over images of what their cells add up to.

    Cross-entropy of whether a cell holds a box; where one does, that of its place, and the smooth
    distance of the logarithms of its size.
    """
    want = wanted(targets, outputs)
    held = binary_cross_entropy_with_logits(outputs[:, 0], want.held, reduction="none")
    place = binary_cross_entropy_with_logits(outputs[:, 1:3], want.place, reduction="none")
    size = smooth_l1_loss(outputs[:, 3:], want.size, reduction="none", beta=0.2)
    total = held + want.held * (place.sum(1) + size.sum(1))
    return total.sum((1, 2)).mean()


def boxes_found(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Returns the share of cells that are right about whether they hold a box."""
    right = (outputs[:, 0] > 0) == (wanted(targets, outputs).held > 0)
    return {"cells_right": right.float().mean((1, 2))}


def _rows(outputs: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    return torch.cat([outputs.flatten(1), targets.flatten(1).to(outputs.dtype)], dim=1)


def _precision(rows: NDArray[Any]) -> float:
    if not np.isfinite(rows).all():
        return float("nan")
    numbers, boxes = np.split(rows, [NUMBERS * _SIDE**2], axis=1)
    found = decode(numbers.reshape(-1, NUMBERS, _SIDE, _SIDE))
    return average_precision(found, [real_boxes(own) for own in boxes.reshape(-1, BOXES, 4)])


MEAN_PRECISION = Pooled(_rows, _precision)
"""Mean average precision at an overlap of 0.5: of the one kind of things that there is."""

TREES_DETECTOR = Task(
    "trees-detector",
    "trees",
    _PHOTOGRAPHS,
    labels=("tree",),
    make_model=Detector,
    objective=supervised,
    loss=detection_loss,
    metrics=boxes_found,
    answer="boxes",
    pooled={"map50": MEAN_PRECISION},
    label_shape=(BOXES, 4),
)
