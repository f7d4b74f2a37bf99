"""Things on a textured ground, and where they are: views of MNIST and Fashion-MNIST with masks.

No image set with masks is to be had as a package. A view puts one 28x28 thing at a place of a 32x32
canvas: the mask is where the thing is brighter than a threshold, the ground is a sum of waves and
speckle as bright as the thing itself, so that brightness alone does not tell it. All that is drawn
is a function of the split and the example's place in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared_models.datasets.archive import Archive
from shared_models.datasets.dataset import Dataset, Split
from shared_models.datasets.images import read_fashion_mnist, read_mnist
from shared_models.randomness import generator

SIDE = 32
TRAIN, TEST = 6_000, 1_000  # so many of the first examples
FOREGROUND = 64  # of 255: where the thing is
_WAVES, _SPECKLE = 3, 25
_TURN, _STEEPEST = 256, 48  # parts of a wave: in all, and from one pixel to the next
_WAVE = np.round(50 * np.sin(2 * np.pi * np.arange(_TURN) / _TURN)).astype(np.int64)


def read_mnist_masks(archive: Archive) -> Dataset:
    """Reads digits on textures `(n, 32, 32)`; labels are masks of that shape, 1 on the digit."""
    return _view(read_mnist(archive), "mnist-masks")


def read_fashion_masks(archive: Archive) -> Dataset:
    """Reads clothes on textures `(n, 32, 32)`; labels are masks of that shape."""
    return _view(read_fashion_mnist(archive), "fashion-masks")


def _view(dataset: Dataset, name: str) -> Dataset:
    test = dataset.test or dataset.train
    return Dataset(name, _split(dataset.train, TRAIN, "train"), _split(test, TEST, "test"))


def _split(split: Split, count: int, key: str) -> Split:
    things = np.asarray(split.x[np.arange(min(count, len(split)))])
    rng = generator(0, "masks", key)
    ground = textures(rng, len(things))
    canvas = _placed(rng, things)
    mask = canvas >= FOREGROUND
    return Split(np.where(mask, canvas, ground), mask.astype(np.int64))


def textures(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Returns grounds `(count, 32, 32)`: waves of any direction, and speckle.

    In whole numbers alone: no computer's way of rounding sines can change a pixel.
    """
    at = np.arange(SIDE)
    total = np.full((count, SIDE, SIDE), 128)
    for _ in range(_WAVES):
        along, across = rng.integers(-_STEEPEST, _STEEPEST, (2, count, 1, 1), endpoint=True)
        phase = rng.integers(0, _TURN, (count, 1, 1))
        total += _WAVE[(along * at[:, None] + across * at + phase) % _TURN]
    total += rng.integers(-_SPECKLE, _SPECKLE, total.shape, endpoint=True)
    shades: NDArray[np.uint8] = np.clip(total, 0, 255).astype(np.uint8)
    return shades


def _placed(rng: np.random.Generator, things: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Puts each thing somewhere on a black canvas."""
    count, height, width = things.shape
    canvas = np.zeros((count, SIDE, SIDE), np.uint8)
    free = (SIDE - height + 1, SIDE - width + 1)
    places = rng.integers(0, free, (count, 2))
    for down in range(free[0]):
        for right in range(free[1]):
            own = (places == (down, right)).all(axis=1)
            canvas[own, down : down + height, right : right + width] = things[own]
    return canvas
