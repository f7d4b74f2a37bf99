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
    """A training split, a test split where there is one, and the names of its natural clients."""

    name: str
    train: Split
    test: Split | None
    client_names: tuple[str, ...] = ()

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
    examples = [x.sequence, x.starts] if isinstance(x, Windows) else [np.asarray(x)]
    return [*examples, split.y] + ([] if split.client_id is None else [split.client_id])
