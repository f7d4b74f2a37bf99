"""In which ranges the values inside a model lie: what full int8 has to know.

A value is what one node of the model's torch.fx graph gives, under the node's name, so that every
side that has the model has the same names. Ranges merge by min and max, histograms by addition:
exactly, in any order.

The histogram's grid is fixed and fine where ranges end: 16 bins an octave, for each sign. So one
pass over the data is enough, and a bin's edge is at most 4.4 % beyond what it holds.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from shared_models.errors import InputError, UpdateError, one_line
from shared_models.tracing import graph_of

RANGES, COUNTS = "ranges", "counts"
"""What a client's ranges and histograms are called in a partial."""
_A_OCTAVE = 16
_OCTAVES = range(-12, 16)
EDGES: NDArray[np.float64] = 2.0 ** (
    np.arange(_OCTAVES.start * _A_OCTAVE, _OCTAVES.stop * _A_OCTAVE + 1) / _A_OCTAVE
)
"""The magnitudes at which a bin ends; smaller ones are all in the middle bin, around zero."""
BINS = 2 * len(EDGES) + 1

_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Softmax)
_RECTIFY = {torch.relu, nn.functional.relu, torch.sigmoid, "relu", "sigmoid"}
_KEEPERS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.Flatten, nn.Dropout)
_KEEP = {torch.flatten, operator.getitem, "flatten", "view", "reshape", "transpose", "permute"}


@dataclass(frozen=True)
class Range:
    """The smallest and the largest that a value was."""

    low: float
    high: float

    def __or__(self, other: Range) -> Range:
        """Returns the smallest range that holds both.

        >>> Range(-1.0, 2.0) | Range(0.0, 3.0)
        Range(low=-1.0, high=3.0)
        """
        return Range(min(self.low, other.low), max(self.high, other.high))


Ranges: TypeAlias = Mapping[str, Range]


def merge(parts: Iterable[Ranges]) -> dict[str, Range]:
    """Returns the union of ranges, value by value; none at all for no parts."""
    merged: dict[str, Range] = {}
    for part in parts:
        for name, own in part.items():
            merged[name] = merged[name] | own if name in merged else own
    return merged


def traced(model: nn.Module) -> GraphModule:
    """Returns the graph of a model in evaluation mode; `InputError` where torch.fx cannot."""
    try:
        return graph_of(model.eval())
    except Exception as error:  # it runs the model's own code
        told = one_line(f"{type(error).__name__}: {error}", 160)
        raise InputError(
            f"this model's values have no names: torch.fx cannot trace it: {told}"
        ) from None


def values_of(graph: GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Returns every floating-point value inside a model for input `(n, *shape)`, by name."""
    recorder = _Recorder(graph)
    with torch.inference_mode():
        recorder.run(x)
    return recorder.found


class _Recorder(Interpreter):
    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op in ("get_attr", "output"):  # weights, and what was told before
            return result
        if isinstance(result, Tensor) and result.is_floating_point():
            self.found[n.name] = result.clone()  # layers that work in place would change it
        return result


def never_negative(graph: GraphModule) -> frozenset[str]:
    """Returns the names of values that are at least zero whatever goes in: after a ReLU, say.

    Quantizers leave a ReLU away where the range begins at zero, so it must: noise and lies may not
    change that.
    """
    found: set[str] = set()
    for node in graph.graph.nodes:
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        rectifies = isinstance(module, _RECTIFIERS) or node.target in _RECTIFY
        keeps = isinstance(module, _KEEPERS) or node.target in _KEEP
        before = node.args[0].name if node.args and isinstance(node.args[0], Node) else ""
        if rectifies or (keeps and before in found):
            found.add(node.name)
    return frozenset(found)


def ranges_of(values: Mapping[str, Tensor]) -> dict[str, Range]:
    """Returns the range of each value."""
    ends = {name: torch.aminmax(value.detach()) for name, value in values.items()}
    return {name: Range(float(low), float(high)) for name, (low, high) in ends.items()}


def histogram(value: Tensor) -> Tensor:
    """Returns how many numbers of a value fall into each bin, int64 `(BINS,)`.

    >>> int(histogram(torch.tensor([0.0, 1.0, -1.0])).sum())
    3
    """
    flat = value.detach().reshape(-1).double()
    place = torch.bucketize(flat.abs(), torch.from_numpy(EDGES), right=True)
    middle = len(EDGES)
    return torch.bincount(middle + torch.sign(flat).long() * place, minlength=BINS)


def clipped(own: Range, counts: NDArray[np.int64], percentile: float) -> Range:
    """Returns the range without its thinnest ends: a share of `1 - percentile / 100` at each.

    Ends lie on edges of bins, never beyond what was seen. `counts` are `(BINS,)`, `percentile` is
    above 50.
    """
    allowed = (1.0 - percentile / 100.0) * counts.sum()
    edges = np.concatenate([[-np.inf], -EDGES[::-1], EDGES, [np.inf]])
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    first = int(np.argmax(below > allowed))
    last = BINS - 1 - int(np.argmax((above > allowed)[::-1]))
    return Range(max(own.low, float(edges[first])), min(own.high, float(edges[last + 1])))


def as_arrays(ranges: Ranges) -> dict[str, Tensor]:
    """Returns ranges as they travel: float32 `(2,)` each."""
    return {name: torch.tensor([own.low, own.high]) for name, own in ranges.items()}


def as_ranges(arrays: Mapping[str, Tensor]) -> dict[str, Range]:
    """Returns what `as_arrays` was given."""
    return {name: Range(*own.tolist()) for name, own in arrays.items()}


def check_ranges(arrays: Mapping[str, Tensor], largest: float) -> None:
    """Raises `UpdateError` that names a value whose range `(2,)` cannot be, or is too large."""
    for name, own in arrays.items():
        low, high = own.tolist()
        if not -largest <= low <= high <= largest:
            raise UpdateError(
                f"value {name} lies in [{low:g}, {high:g}], which is no range within {largest:g}"
            )


def join(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the sums of arrays of the same names; none at all for no parts."""
    joined: dict[str, Tensor] = {}
    for name, own in itertools.chain.from_iterable(part.items() for part in parts):
        joined[name] = joined[name] + own if name in joined else own
    return joined
