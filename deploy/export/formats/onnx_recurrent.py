"""Recurrent classifiers as ONNX with one operator a layer, and nothing else.

Torch's exporters add a dozen operators that make up a state of zero and reshape around it; in ONNX
it begins with zero anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy.export.formats.layers import GATES, has_relu, numbers, recurrent_numbers
from deploy.export.formats.recurrent import Dense, Layer, Recurrent

_OPSET, _IR = 18, 10


class _Graph:
    """Operators in the order in which they run, and the constants that they take."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: NDArray[np.generic]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def apply(self, operator: str, inputs: Sequence[str], outputs: int = 1, **how: Any) -> str:
        """Adds an operator; returns the last of its outputs."""
        names = [f"{operator}_{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **how))
        return names[-1]


def recurrent_onnx(
    model: Recurrent, shape: Sequence[int], ends: tuple[str, str]
) -> onnx.ModelProto:
    """Returns a model of any batch, for sequences of `shape`; `ends` are its input and output."""
    graph, (entry, result) = _Graph(), ends
    x = entry
    if model.embedding is not None:
        x = graph.apply("Gather", [graph.constant(numbers(model.embedding.weight)), x])
    x = graph.apply("Transpose", [x], perm=(1, 0, 2))  # time first
    layers = [(own, place) for own in model.layers for place in range(own.num_layers)]
    for layer in layers[:-1]:
        states = _recurrent(graph, layer, x, outputs=1)
        x = graph.apply("Squeeze", [states, graph.constant(np.array([1]))])
    last = _recurrent(graph, layers[-1], x, outputs=2)
    x = graph.apply("Squeeze", [last, graph.constant(np.array([0]))])
    for dense in model.dense:
        x = _dense(graph, dense, x)
    graph.nodes[-1].output[0] = result
    classes = model.dense[-1].layer.out_features
    taken = TensorProto.FLOAT if model.embedding is None else TensorProto.INT64
    made = helper.make_graph(
        graph.nodes,
        "recurrent",
        [helper.make_tensor_value_info(entry, taken, ["batch", *shape])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", classes])],
        graph.constants,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _recurrent(graph: _Graph, of: tuple[Layer, int], x: str, outputs: int) -> str:
    """Adds a layer; returns all its states `(time, 1, n, width)`, or of two outputs the last."""
    is_lstm = isinstance(of[0], nn.LSTM)
    how: dict[str, Any] = {"hidden_size": of[0].hidden_size}
    parts = [_in_order(part) if is_lstm else part for part in recurrent_numbers(*of)]
    parts[2] = np.concatenate([parts[2], np.zeros_like(parts[2])])  # ONNX has two biases, too
    if has_relu(of[0]):
        how["activations"] = ["Relu"]
    inputs = [x, *(graph.constant(part[None]) for part in parts)]
    return graph.apply("LSTM" if is_lstm else "RNN", inputs, outputs, **how)


def _in_order(gates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns gates as ONNX has them: input, output, forget, cell."""
    let_in, forget, cell, output = np.split(gates, GATES)
    return np.concatenate([let_in, output, forget, cell])


def _dense(graph: _Graph, dense: Dense, x: str) -> str:
    layer = dense.layer
    inputs = [x, graph.constant(numbers(layer.weight))]
    inputs += [graph.constant(numbers(layer.bias))] if layer.bias is not None else []
    x = graph.apply("Gemm", inputs, transB=1)
    return graph.apply("Relu", [x]) if dense.relu else x
