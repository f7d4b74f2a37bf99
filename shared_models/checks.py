"""No bad value gets in: pure functions that say whether an update may be summed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shared_models.arrays import Arrays, Role, global_norm
from shared_models.errors import UpdateError
from shared_models.partial import ClientState, SumSpec

# A mean of larger values, weighted by examples, could be infinite; no loss in float32 is larger.
_LARGEST_METRIC = torch.finfo(torch.float32).max


def check_update(
    sums: Mapping[str, Arrays],
    specs: Mapping[str, SumSpec],
    like: Arrays,
    roles: Mapping[str, Role],
    max_norm: float,
) -> None:
    """Raises `UpdateError` unless one client's sums match the model and are fit to be added."""
    check_arrays(sums, specs, like, roles)
    check_norm(sums["delta"], max_norm)


def check_arrays(
    sums: Mapping[str, Arrays],
    specs: Mapping[str, SumSpec],
    like: Arrays,
    roles: Mapping[str, Role],
) -> None:
    """Raises `UpdateError` unless names, shapes, dtypes are the model's and values finite."""
    if set(sums) != set(specs):
        raise UpdateError(f"sums are {sorted(sums)}, expected {sorted(specs)}")
    for name, arrays in sums.items():
        check_named(name, arrays, specs[name].like(like, roles))


def check_norm(delta: Arrays, max_norm: float, weight: float = 1.0) -> None:
    """Raises `UpdateError` when the Euclidean norm of `delta / weight` is above the bound."""
    norm = float(global_norm(delta)) / weight
    if not norm <= max_norm:
        raise UpdateError(f"norm of the delta is {norm:.3g}, the bound is {max_norm:g}")


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Raises `UpdateError` when a metric is NaN or infinite, or its mean could be."""
    for name, value in metrics.items():
        if not abs(value) <= _LARGEST_METRIC:
            raise UpdateError(f"metric {name} is {value}")


def check_state(state: ClientState, like: ClientState) -> None:
    """Raises `UpdateError` unless a client's state has the parts and arrays of another."""
    if set(state) != set(like):
        raise UpdateError(f"state has the parts {sorted(state)}, expected {sorted(like)}")
    for part, arrays in state.items():
        check_named(part, arrays, like[part])


def check_named(name: str, arrays: Arrays, like: Arrays) -> None:
    """Raises `UpdateError` unless names, shapes, dtypes are those of `like` and values finite."""
    if set(arrays) != set(like):
        missing, unknown = sorted(set(like) - set(arrays)), sorted(set(arrays) - set(like))
        raise UpdateError(f"{name}: missing arrays {missing}, unknown arrays {unknown}")
    for key, expected in like.items():
        _check_array(f"{name}.{key}", arrays[key], expected)
    # One look at the norm of everything; which array is at fault matters only if there is a fault.
    floating = {key: array for key, array in arrays.items() if array.is_floating_point()}
    if not bool(torch.isfinite(global_norm(floating))):
        for key, array in arrays.items():
            if not bool(torch.isfinite(array).all()):
                raise UpdateError(f"{name}.{key}: holds NaN or infinite values")


def _check_array(key: str, array: torch.Tensor, expected: torch.Tensor) -> None:
    if array.shape != expected.shape:
        raise UpdateError(f"{key}: shape {tuple(array.shape)}, expected {tuple(expected.shape)}")
    if array.dtype != expected.dtype:
        raise UpdateError(f"{key}: dtype {array.dtype}, expected {expected.dtype}")
