"""No bad value gets in: one pure function says whether an update may be summed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shared_models.arrays import Arrays, Role, global_norm, with_role
from shared_models.errors import UpdateError

# Which arrays each named sum is made of.
SUM_ROLES: Mapping[str, Role] = {"delta": "trainable", "stats": "averaged"}


def check_update(
    sums: Mapping[str, Arrays],
    weight: float,
    like: Arrays,
    roles: Mapping[str, Role],
    max_norm: float,
) -> None:
    """Raises `UpdateError` unless every named sum matches the model and is fit to be added.

    `sums` are means (a client's own update, or a partial divided by its weight); `like` is the
    server's model. Checked: weight, names, shapes, dtypes, finite values, norm of the delta.
    """
    if not (weight > 0 and weight < float("inf")):
        raise UpdateError(f"weight is {weight}, expected a positive number")
    if set(sums) != set(SUM_ROLES):
        raise UpdateError(f"sums are {sorted(sums)}, expected {sorted(SUM_ROLES)}")
    for name, arrays in sums.items():
        _check_arrays(name, arrays, with_role(like, roles, SUM_ROLES[name]))
    norm = float(global_norm(sums["delta"]))
    if not norm <= max_norm:
        raise UpdateError(f"norm of the delta is {norm:.3g}, the bound is {max_norm:g}")


def _check_arrays(name: str, arrays: Arrays, like: Arrays) -> None:
    if set(arrays) != set(like):
        missing, unknown = sorted(set(like) - set(arrays)), sorted(set(arrays) - set(like))
        raise UpdateError(f"{name}: missing arrays {missing}, unknown arrays {unknown}")
    for key, expected in like.items():
        _check_array(f"{name}.{key}", arrays[key], expected)


def _check_array(key: str, array: torch.Tensor, expected: torch.Tensor) -> None:
    if array.shape != expected.shape:
        raise UpdateError(f"{key}: shape {tuple(array.shape)}, expected {tuple(expected.shape)}")
    if array.dtype != expected.dtype:
        raise UpdateError(f"{key}: dtype {array.dtype}, expected {expected.dtype}")
    if not bool(torch.isfinite(array).all()):
        raise UpdateError(f"{key}: holds NaN or infinite values")
