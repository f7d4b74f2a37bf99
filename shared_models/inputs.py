"""What goes into a model, as plain values: a device needs no torch to prepare its input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_MOST_VALUES = 1 << 26


@dataclass(frozen=True)
class InputSpec:
    """Shape and dtype of one example, and how a raw one becomes model input: `(raw - mean) / std`.

    `shape` is without the batch axis. `mean` and `std` broadcast over it from the right. Tokens
    (`int64`) are not normalised; they are below `tokens`. `white` is how bright raw images can be.
    Raises `ValueError` for what no input can be: a spec may come with a file of a stranger's.

    >>> InputSpec(shape=(1, 2, 2), std=(255.0,)).prepare(np.full((3, 2, 2), 255, np.uint8)).shape
    (3, 1, 2, 2)
    """

    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"] = "float32"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    tokens: int = 0
    white: float = 255.0

    def __post_init__(self) -> None:
        if fault := self._fault():
            raise ValueError(fault)

    def _fault(self) -> str:
        if not self.shape or min(self.shape) < 1 or math.prod(self.shape) > _MOST_VALUES:
            return f"no example has the shape {self.shape}"
        if self.dtype == "int64" and self.tokens < 1:
            return "tokens need to be at least one"
        if not math.isfinite(self.white) or self.white <= 0:
            return "white is not above 0"
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in {1, self.shape[-1]} or not all(map(math.isfinite, numbers)):
                return f"{name} does not fit the shape"
        return "std has a zero" if 0.0 in self.std else ""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether raw examples of this shape can be input: as they are, flat, or without ones."""
        squeezed = tuple(size for size in self.shape if size != 1)
        return shape in {self.shape, squeezed, (math.prod(self.shape),)}

    def prepare(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Returns model input of shape `(n, *shape)` from n raw examples."""
        shaped = raw.reshape(len(raw), *self.shape)
        if self.dtype == "int64":
            return shaped.astype(np.int64)
        values = shaped.astype(np.float32)
        if any(self.mean):
            values -= np.array(self.mean, np.float32)
        values /= np.array(self.std, np.float32)
        return values
