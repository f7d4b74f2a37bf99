"""Boxes, in numpy alone: what a detector's numbers mean, which boxes stay, how good they are.

A box is `(left, top, right, bottom)` in pixels. The numbers of a cell are a logit, where in the
cell the box's centre is (two logits), and the logarithms of width and height relative to a usual
box: Redmon, Farhadi, "YOLO9000", CVPR 2017, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NUMBERS = 5
CELL = 8  # pixels
USUAL = 20.0  # pixels, of a side
LARGEST = 2.0  # of the logarithm of a size: 7 times the usual

Values = NDArray[np.float64]


class Found(NamedTuple):
    """Boxes `(k, 4)` and how sure the model is of each `(k,)`, the surest first."""

    boxes: Values
    scores: Values


def decode(numbers: NDArray[Any], least: float = 0.05, overlap: float = 0.4) -> list[Found]:
    """Returns what was found in each image of `(n, 5, rows, columns)`.

    Boxes with a score below `least` are left away, and those that overlap a surer one by more than
    `overlap` (intersection over union).
    """
    values = numbers.astype(np.float64)
    rows, columns = values.shape[2:]
    scores = _sigmoid(values[:, 0]).reshape(len(values), -1)
    x = (_sigmoid(values[:, 1]) + np.arange(columns)) * CELL
    y = (_sigmoid(values[:, 2]) + np.arange(rows)[:, None]) * CELL
    w, h = (USUAL * np.exp(np.clip(values[:, k], -LARGEST, LARGEST)) for k in (3, 4))
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)
    ends = np.array([columns, rows, columns, rows]) * float(CELL)
    boxes = np.clip(corners, 0.0, ends).reshape(len(values), -1, 4)
    return [_kept(Found(*own), least, overlap) for own in zip(boxes, scores, strict=True)]


def _sigmoid(x: Values) -> Values:
    clipped: Values = 1.0 / (1.0 + np.exp(-np.clip(x, -50.0, 50.0)))
    return clipped


def _kept(found: Found, least: float, overlap: float) -> Found:
    likely = np.flatnonzero(found.scores >= least)
    order = likely[np.argsort(-found.scores[likely], kind="stable")]
    boxes, scores = found.boxes[order], found.scores[order]
    kept = suppress(boxes, overlap)
    return Found(boxes[kept], scores[kept])


def suppress(boxes: Values, overlap: float) -> NDArray[np.int64]:
    """Returns which boxes `(k, 4)`, the surest first, no surer one overlaps by more than that.

    >>> suppress(np.array([[0.0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]]), 0.5).tolist()
    [0, 2]
    """
    shared = iou(boxes, boxes)
    kept: list[int] = []
    for place in range(len(boxes)):
        if not (shared[place, kept] > overlap).any():
            kept.append(place)
    return np.array(kept, np.int64)


def iou(left: NDArray[Any], right: NDArray[Any]) -> Values:
    """Returns intersection over union of boxes `(k, 4)` with boxes `(m, 4)`: `(k, m)`.

    >>> iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6]])).round(3).tolist()
    [[0.333, 0.0]]
    """
    a, b = np.asarray(left, np.float64)[:, None], np.asarray(right, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.clip(sides, 0.0, None).prod(axis=-1)
    union = _area(a) + _area(b) - common
    shared: Values = common / np.maximum(union, 1e-9)
    return shared


def _area(boxes: Values) -> Values:
    area: Values = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    return area


def real_boxes(padded: NDArray[Any]) -> NDArray[Any]:
    """Returns those of `(m, 4)` that have an area: zeros fill up an image with fewer boxes."""
    return padded[(padded[:, 2] > padded[:, 0]) & (padded[:, 3] > padded[:, 1])]


def average_precision(
    found: Sequence[Found], truths: Sequence[NDArray[Any]], overlap: float = 0.5
) -> float:
    """Returns the area under precision over recall, NaN if there is nothing to be found.

    Everingham et al., "The PASCAL visual object classes challenge: a retrospective", IJCV 2015,
    section 4.1, with every point of the curve: a box is right if its best match overlaps it by
    `overlap` and no surer box has taken that.
    """
    total = sum(len(boxes) for boxes in truths)
    if not total:
        return float("nan")
    marked = [_right(own, boxes, overlap) for own, boxes in zip(found, truths, strict=True)]
    scores = np.concatenate([own.scores for own in found])
    right = np.concatenate(marked)[np.argsort(-scores, kind="stable")]
    hits = np.cumsum(right)
    recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
    at_least = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * at_least).sum())


def _right(found: Found, truths: NDArray[Any], overlap: float) -> NDArray[np.bool_]:
    right = np.zeros(len(found.boxes), bool)
    if not len(truths):
        return right
    shared, taken = iou(found.boxes, truths), set[int]()
    for place, own in enumerate(shared):
        best = int(own.argmax())
        if own[best] >= overlap and best not in taken:
            right[place] = True
            taken.add(best)
    return right
