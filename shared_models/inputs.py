"""What goes into a model, as plain values: a device needs no torch to prepare its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class InputSpec:
    """Shape and dtype of one example, and how a raw one becomes model input: `(raw - mean) / std`.

    `shape` is without the batch axis. `mean` and `std` broadcast over it from the right; tokens
    (`int64`) are not normalised.

    >>> InputSpec(shape=(1, 2, 2), std=(255.0,)).prepare(np.full((3, 2, 2), 255, np.uint8)).shape
    (3, 1, 2, 2)
    """

    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"] = "float32"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def prepare(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Returns model input of shape `(n, *shape)` from n raw examples."""
        if self.dtype == "int64":
            return raw.reshape(len(raw), *self.shape).astype(np.int64)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values: NDArray[np.float32] = (raw.astype(np.float32) - mean) / std
        return values.reshape(len(raw), *self.shape)
