"""How images lie in memory, and the weights that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared_models.arrays import Arrays


def channels_last(x: Tensor) -> Tensor:
    """Returns images with their channels adjacent in memory.

    With one channel both layouts have the same bytes and torch takes the slow one, in which pooling
    is scalar; spelling the strides out makes it take the other.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    n, c, h, w = x.shape
    return x.as_strided((n, c, h, w), (h * w * c, 1, w * c, c)) if c == 1 else x


@dataclass(frozen=True)
class Columns:
    """Dense weights whose columns read a flattened image, by name, with that image's `(c, h, w)`.

    In a block's training their columns are in the order in which the image lies in memory, channels
    last. Then flattening copies nothing; the weights are reordered once a block.
    """

    images: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    def reordered(self, arrays: Arrays) -> Arrays:
        """Returns the arrays with these columns in the order of memory."""
        changed = {
            name: torch.unflatten(arrays[name], 1, chw).permute(0, 2, 3, 1).flatten(1)
            for name, chw in self.images.items()
        }
        return {**arrays, **changed}

    def restored(self, arrays: Arrays) -> Arrays:
        """Returns the arrays with these columns in the model's own order."""
        changed = {
            name: torch.unflatten(arrays[name], 1, (h, w, c)).permute(0, 3, 1, 2).flatten(1)
            for name, (c, h, w) in self.images.items()
        }
        return {**arrays, **changed}
