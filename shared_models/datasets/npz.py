"""Bring your own: an `.npz` with `x`, `y` and, if you like, `client_id`, `x_test`, `y_test`.

`y` is a whole number an example, a mask of them `(n, h, w)`, or boxes in whole pixels `(n, k, 4)`.
Who has no label for an example says -1; examples to measure with need one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared_models.datasets.dataset import Dataset, Split
from shared_models.errors import InputError, one_line
from shared_models.labelled import UNLABELLED

_LARGEST = 2**31 - 1  # ids and labels are counted with


def read_npz(path: Path) -> Dataset:
    """Reads a user's own dataset; raises `InputError` that names the file and the array."""
    arrays = _load(path)
    train = _split(path, arrays, "x", "y", arrays.get("client_id"))
    has_test = "x_test" in arrays or "y_test" in arrays
    test = _split(path, arrays, "x_test", "y_test", None) if has_test else None
    return Dataset(path.name, train, test)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz, which numpy.savez makes")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except MemoryError:  # which may be there another time
        raise
    except Exception as error:  # numpy raises anything on a damaged file
        reason = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"{path}: not an .npz of plain arrays: {reason}") from None


def _split(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    x_name: str,
    y_name: str,
    client_id: NDArray[Any] | None,
) -> Split:
    for name in (x_name, y_name):
        if name not in arrays:
            raise InputError(
                f"{path}: has no array {name!r} (found: {', '.join(arrays) or 'none'})"
            )
    x, y = arrays[x_name], arrays[y_name]
    _check_examples(path, x_name, x)
    if y_name == "y_test" and y.dtype.kind == "i" and (y == UNLABELLED).any():
        raise InputError(f"{path}: 'y_test' holds {UNLABELLED}: who measures needs all labels")
    return Split(
        x,
        _labels(path, y_name, y, len(x)),
        None if client_id is None else _integers(path, "client_id", client_id, len(x)),
    )


def check_split(where: str, x: NDArray[Any], y: NDArray[Any]) -> Split:
    """Returns examples and labels that come from elsewhere; `InputError` when they are unfit."""
    _check_examples(where, "x", x)
    return Split(x, _labels(where, "y", y, len(x)))


def _check_examples(path: Path | str, name: str, x: NDArray[Any]) -> None:
    if x.ndim < 1 or len(x) == 0 or x.dtype.kind not in "fiub":
        raise InputError(
            f"{path}: {name!r} must be a non-empty array of numbers, got {x.dtype} {x.shape}"
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(axis=1)))
        raise InputError(f"{path}: {name!r} holds NaN or infinite values, first in example {bad}")


def _labels(path: Path | str, name: str, values: NDArray[Any], length: int) -> NDArray[np.int64]:
    """Returns labels of one or more numbers an example; the task says how many it takes."""
    if values.ndim < 2 or len(values) != length:
        return _integers(path, name, values, length, UNLABELLED)
    if values.dtype.kind not in "iu":
        raise InputError(f"{path}: {name!r} must be integers, got {values.dtype} {values.shape}")
    return _integers(path, name, values.reshape(-1), values.size).reshape(values.shape)


def _integers(
    path: Path | str, name: str, values: NDArray[Any], length: int, least: int = 0
) -> NDArray[np.int64]:
    if values.shape != (length,) or values.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {name!r} must be {length} integers, got {values.dtype} {values.shape}"
        )
    if values.min() < least:
        raise InputError(f"{path}: {name!r} holds {values.min()}, the least may be {least}")
    if values.max() > _LARGEST:
        raise InputError(f"{path}: {name!r} holds {values.max()}, the largest may be {_LARGEST}")
    return values.astype(np.int64)
