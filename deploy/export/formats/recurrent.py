"""Which recurrent models our writers can write, told by what they compute, not by name.

tokens -> embedding -> |
                       | -> LSTM ... LSTM -> state after the last step -> dense ... dense
floats --------------> |

Simple RNN layers may stand where an LSTM does.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.fx import Node

from shared_models.errors import one_line

Layer: TypeAlias = nn.LSTM | nn.RNN

_RELU = {torch.relu, nn.functional.relu, "relu"}
_IDLE = (nn.Dropout, nn.Identity)  # what does nothing once training is over


@dataclass(frozen=True)
class Dense:
    """A linear layer, and whether a ReLU follows."""

    layer: nn.Linear
    relu: bool


@dataclass(frozen=True)
class Recurrent:
    """The layers of a recurrent classifier in order."""

    embedding: nn.Embedding | None
    layers: tuple[Layer, ...]
    dense: tuple[Dense, ...]


class UnknownStructureError(Exception):
    """A model is no chain of embedding, LSTM or RNN, and dense layers; the message says where."""


def is_recurrent(model: nn.Module) -> bool:
    """Whether any layer goes through time."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def recognise(model: nn.Module) -> Recurrent:
    """Returns the layers of a recurrent classifier; raises `UnknownStructureError`."""
    try:
        traced = torch.fx.symbolic_trace(model)
    except Exception as error:  # it runs the model's own code
        raise UnknownStructureError(one_line(f"it cannot be traced: {error}", 120)) from None
    found = _Reader(traced)
    (result,) = (node.args[0] for node in traced.graph.nodes if node.op == "output")
    return found.read(result)


class _Reader:
    """Walks from a model's result back to its input."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        self._traced = traced

    def read(self, result: Any) -> Recurrent:
        dense, node = self._dense(result)
        layers, node = self._recurrent(self._before_last_step(node))
        layer = self._layer(node)
        embedding = layer if isinstance(layer, nn.Embedding) and layer.max_norm is None else None
        if embedding is not None:
            node = node.args[0]
        if not isinstance(node, Node) or node.op != "placeholder":
            raise UnknownStructureError(f"{_told(node)} stands before the first recurrent layer")
        return Recurrent(embedding, layers, dense)

    def _dense(self, node: Any) -> tuple[tuple[Dense, ...], Any]:
        found: list[Dense] = []
        while True:
            node, relu = self._before_relu(node)
            layer = self._layer(node)
            if not isinstance(layer, nn.Linear):
                break
            found.insert(0, Dense(layer, relu))
            node = node.args[0]
        if relu or not found:
            raise UnknownStructureError("no dense layer follows the last state")
        return tuple(found), node

    def _before_relu(self, node: Any) -> tuple[Any, bool]:
        """Returns what stands before ReLUs and idle layers, and whether there was a ReLU."""
        relu = False
        while True:
            node = self._idle(node)
            called = isinstance(node, Node) and node.target in _RELU
            if not called and not isinstance(self._layer(node), nn.ReLU):
                return node, relu
            node, relu = node.args[0], True

    def _before_last_step(self, node: Any) -> Any:
        """Returns the layer whose state after the last step this is."""
        source, key = _item(node)
        if key == -1:  # of the final states by layer
            states, first = _item(source)
            if first == 1 and isinstance(self._layer(states), nn.RNN):
                return states
            lstm, second = _item(states)
            if (first, second) == (0, 1):
                return lstm
        if isinstance(key, tuple) and key[:2] == (slice(None), -1) and not any(map(_cuts, key[2:])):
            layer, first = _item(source)
            if first == 0:
                return layer
        raise UnknownStructureError(f"{_told(node)} is not the state after the last step")

    def _recurrent(self, node: Any) -> tuple[tuple[Layer, ...], Any]:
        found: list[Layer] = []
        while True:
            layer = self._layer(node)
            if not isinstance(layer, Layer) or len(node.args) + len(node.kwargs) != 1:
                raise UnknownStructureError(
                    f"{_told(node)} is not an LSTM or RNN that begins at zero"
                )
            if layer.bidirectional or layer.proj_size or not layer.batch_first:
                raise UnknownStructureError(
                    f"{node.target} is bidirectional, projected or not batch_first"
                )
            found.insert(0, layer)
            node = self._idle(node.args[0])
            source, key = _item(node)
            if key != 0:
                return tuple(found), node
            node = source

    def _idle(self, node: Any) -> Any:
        while isinstance(self._layer(node), _IDLE):
            node = node.args[0]
        return node

    def _layer(self, node: Any) -> nn.Module | None:
        if isinstance(node, Node) and node.op == "call_module":
            return self._traced.get_submodule(str(node.target))
        return None


def _item(node: Any) -> tuple[Any, Any]:
    """Returns `(a, key)` for `a[key]`, nothing for anything else."""
    if isinstance(node, Node) and node.target is operator.getitem:
        return node.args[0], node.args[1]
    return None, None


def _cuts(key: Any) -> bool:
    return bool(key != slice(None))


def _told(node: Any) -> str:
    return f"{node.target!s}" if isinstance(node, Node) else repr(node)
