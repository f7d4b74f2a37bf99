"""Which value of the torch model a tensor of a file holds: told by what both are for random input.

Converters rename, fold, fuse and transpose, so neither names nor shapes tell. The numbers do: for a
few random inputs, a tensor holds a value when both have the same numbers in whatever order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shared_models.errors import ExportError
from shared_models.inputs import InputSpec
from shared_models.randomness import generator
from shared_models.ranges import Range, Ranges, traced, values_of

_PROBES = 8
_TOLERANCE = 1e-4  # of the largest number: runtimes add up in other orders
# What gives no number that was not in its first input, but perhaps zero.
_NEVER_WIDEN = {
    *("RESHAPE", "TRANSPOSE", "SQUEEZE", "UNSQUEEZE", "EXPANDDIMS", "FLATTEN", "IDENTITY"),
    *("SLICE", "STRIDEDSLICE", "GATHER", "PAD", "PADV2", "RELU"),
    *("MAXPOOL", "MAXPOOL2D", "AVERAGEPOOL", "AVERAGEPOOL2D", "GLOBALAVERAGEPOOL"),
}


@dataclass(frozen=True)
class Origin:
    """How a tensor of a file comes about: by which operator, from which tensors."""

    operator: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """What every tensor of a file was for the probes, and where it comes from."""

    tensors: Mapping[str, NDArray[Any]]
    origins: Mapping[str, Origin]


def probes(spec: InputSpec) -> NDArray[Any]:
    """Returns random model input `(8, *shape)`, always the same."""
    rng, shape = generator(0, "probes"), (_PROBES, *spec.shape)
    if spec.dtype == "int64":
        return rng.integers(max(spec.tokens, 1), size=shape)
    return rng.normal(size=shape).astype(np.float32)


def matched(
    model: nn.Module, x: NDArray[Any], opened: Opened, ranges: Ranges, wanted: Collection[str]
) -> dict[str, Range]:
    """Returns the range of each wanted tensor of a file that was opened with the probes `x`.

    A tensor that holds no value takes the range of its operator's input where the operator cannot
    widen it; raises `ExportError` that names the tensor where it can.
    """
    values = {
        name: _fingerprint(value.numpy())
        for name, value in values_of(traced(model), torch.from_numpy(x)).items()
        if name in ranges
    }
    found: dict[str, Range] = {}
    for name in wanted:
        found[name] = _range_of(name, opened, values, ranges)
    return found


def _range_of(
    name: str, opened: Opened, values: Mapping[str, NDArray[np.float64]], ranges: Ranges
) -> Range:
    same = [
        ranges[value]
        for value, numbers in values.items()
        if _equal(_fingerprint(opened.tensors[name]), numbers)
    ]
    if same:
        return reduce(or_, same)
    origin = opened.origins.get(name, Origin("nothing", ()))
    known = [own for own in origin.inputs if own in opened.tensors]
    if _plain(origin.operator) not in _NEVER_WIDEN or not known:
        raise ExportError(
            f"tensor {name!r}, which {origin.operator} makes, holds no value of the torch model: "
            "clients told no range for it; remove the calibrate stage to calibrate centrally"
        )
    before = _range_of(known[0], opened, values, ranges)
    if _plain(origin.operator) == "RELU":  # what is below zero is gone
        return Range(0.0, max(before.high, 0.0))
    # Padding and a pool's border bring in zeros.
    return before | Range(0.0, 0.0)


def _plain(operator: str) -> str:
    return operator.replace("_", "").upper()


def _fingerprint(numbers: NDArray[Any]) -> NDArray[np.float64]:
    return np.sort(numbers.astype(np.float64), axis=None)


def _equal(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    if one.size != other.size:
        return False
    scale = max(float(np.abs(other[[0, -1]]).max()), 1e-6)
    return bool(np.abs(one - other).max() <= _TOLERANCE * scale)


def origins_of(operators: Iterable[tuple[str, Iterable[str], Iterable[str]]]) -> dict[str, Origin]:
    """Returns where each tensor comes from, for operators with their inputs and outputs."""
    return {
        output: Origin(operator, tuple(inputs))
        for operator, inputs, outputs in operators
        for output in outputs
    }
