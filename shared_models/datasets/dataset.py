"""What a dataset is, once it is in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Examples(Sized, Protocol):
    """Raw examples, indexable by an array of positions: an array, or windows cut on demand."""

    def __getitem__(self, index: Any, /) -> NDArray[Any]:
        """Returns the examples at `index`, stacked on axis 0."""


@dataclass(frozen=True)
class Windows:
    """Fixed-length windows into one long sequence, cut when asked for.

    >>> Windows(np.arange(10), np.array([0, 4]), 3)[np.array([1])].tolist()
    [[4, 5, 6]]
    """

    sequence: NDArray[Any]
    starts: NDArray[np.int64]
    length: int

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Returns windows of shape `(len(index), length)`."""
        positions = np.asarray(self.starts[index])[..., None] + np.arange(self.length)
        return np.asarray(self.sequence[positions])


@dataclass(frozen=True)
class Enlarged:
    """Grey images as square colour ones of another size, made when asked for.

    Bilinear, by whole numbers: a computer's way of rounding floats cannot change a pixel.

    >>> Enlarged(np.array([[[0, 200], [100, 100]]], np.uint8), side=4)[np.array([0])][0, 0].tolist()
    [[0, 50, 150, 200], [25, 63, 138, 175], [75, 88, 113, 125], [100, 100, 100, 100]]
    """

    images: NDArray[np.uint8]
    side: int
    channels: int = 3

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """Returns images of shape `(len(index), channels, side, side)`."""
        grey = self.images[np.atleast_1d(index)].astype(np.int32)
        for axis in (1, 2):
            grey = _stretched(grey, axis, self.side)
        half = _STEPS**2 // 2
        whole = ((grey + half) // _STEPS**2).astype(np.uint8)
        return np.repeat(whole[:, None], self.channels, axis=1)


_STEPS = 256  # weights are in such parts of one


def _stretched(images: NDArray[np.int32], axis: int, side: int) -> NDArray[np.int32]:
    """Returns `_STEPS` times the images, stretched along an axis; pixels are areas, not points."""
    size = images.shape[axis]
    place = ((2 * np.arange(side) + 1) * size * _STEPS // side - _STEPS) // 2
    place = np.clip(place, 0, (size - 1) * _STEPS)
    low, part = place // _STEPS, place % _STEPS
    high = np.minimum(low + 1, size - 1)
    shape = [1, 1, 1]
    shape[axis] = side
    part = part.reshape(shape).astype(np.int32)
    before, after = images.take(low, axis), images.take(high, axis)
    stretched: NDArray[np.int32] = before * (_STEPS - part) + after * part
    return stretched


@dataclass(frozen=True)
class Split:
    """Examples with labels `y` and, where the data says so, whose each one is.

    `y` is `(n,)`, or `(n, h, w)` for masks, or `(n, k, 4)` for boxes: left, top, right, bottom in
    pixels, filled with zeros.
    """

    x: Examples
    y: NDArray[np.int64]
    client_id: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def holds_boxes(self) -> bool:
        """Whether labels are boxes; no mask is four pixels wide."""
        return self.y.ndim == 3 and self.y.shape[2] == 4


@dataclass(frozen=True)
class Dataset:
    """A training split, a test split where there is one, and the names of its natural clients.

    `words`: what tokens 2, 3, ... are, with spaces between; empty where examples are no texts.
    """

    name: str
    train: Split
    test: Split | None
    client_names: tuple[str, ...] = ()
    words: str = ""

    def digest(self) -> str:
        """Returns a sha256 over the content of both splits: equal data, equal digest."""
        content = hashlib.sha256()
        for split in filter(None, (self.train, self.test)):
            for part in _arrays_of(split):
                content.update(f"{part.dtype.str}{part.shape}".encode())
                content.update(np.ascontiguousarray(part).data)
        return content.hexdigest()


def _arrays_of(split: Split) -> list[NDArray[Any]]:
    x = split.x
    examples = [np.asarray(x)] if isinstance(x, np.ndarray) else _held_by(x)
    return [*examples, split.y] + ([] if split.client_id is None else [split.client_id])


def _held_by(x: Examples) -> list[NDArray[Any]]:
    """Returns the arrays that examples are made from when they are asked for."""
    if isinstance(x, Windows):
        return [x.sequence, x.starts]
    if isinstance(x, Enlarged):
        return [x.images, np.array([x.channels, x.side])]
    return [x[np.arange(len(x))]]
