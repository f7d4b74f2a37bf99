"""Recurrent classifiers as TFLite with one fused operator a layer.

A converter unrolls an LSTM over time: large and slow. `UNIDIRECTIONAL_SEQUENCE_LSTM` takes the
whole sequence. Its state is kept in variables: `reset_all_variables` begins a new sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.export.formats.graph import ABSENT, Graph, Operator
from deploy.export.formats.recurrent import Dense, Recurrent
from shared_models.errors import ExportError

_RELU, _TANH = 1, 4  # of schema.ActivationFunctionType
_GATES = 4  # input, forget, cell, output: the same order in torch and in TFLite


@dataclass(frozen=True)
class Weights:
    """How weights are stored, and the versions of the operators that take them so."""

    store: Callable[[Graph, NDArray[np.float32]], int]
    lstm_version: int = 1
    dense_version: int = 1


def write_fused(model: Recurrent, shape: Sequence[int], weights: Weights) -> bytes:
    """Returns a file for one sequence of `shape`: `(time,)` tokens or `(time, channels)` floats."""
    graph = Graph()
    time = shape[0]
    is_tokens = model.embedding is not None
    x = entry = graph.activation((1, *shape), np.int32 if is_tokens else np.float32)
    if model.embedding is not None:
        x = _embed(graph, model.embedding, x, time)
    for lstm in model.lstms:
        for layer in range(lstm.num_layers):
            x = _lstm(_Step(graph, weights, time), lstm, layer, x)
    x = _last(graph, x, time, model.lstms[-1].hidden_size)
    for dense in model.dense:
        x = _dense(graph, weights, dense, x)
    return graph.to_bytes({"input": entry}, {"logits": x})


def _embed(graph: Graph, embedding: nn.Embedding, tokens: int, time: int) -> int:
    """The table stays float32: it is small beside the LSTM, and its values are looked up only."""
    table = graph.constant(_numbers(embedding.weight))
    out = graph.activation((1, time, embedding.embedding_dim))
    return graph.apply(Operator("GATHER", 1, "GatherOptions"), [table, tokens], out)


@dataclass(frozen=True)
class _Step:
    graph: Graph
    weights: Weights
    time: int


def _lstm(step: _Step, lstm: nn.LSTM, layer: int, x: int) -> int:
    graph, width = step.graph, lstm.hidden_size

    def gates(name: str) -> list[NDArray[np.float32]]:
        return np.split(_numbers(getattr(lstm, f"{name}_l{layer}")), _GATES)

    def stored(name: str) -> list[int]:
        return [step.weights.store(graph, part) for part in gates(name)]

    bias = [np.zeros(width, np.float32)] * _GATES
    if lstm.bias:  # torch has two of them that are only ever added
        pairs = zip(gates("bias_ih"), gates("bias_hh"), strict=True)
        bias = [of_input + of_state for of_input, of_state in pairs]
    inputs = [
        *(x, *stored("weight_ih"), *stored("weight_hh")),
        *([ABSENT] * 3),  # peepholes
        *(graph.constant(part) for part in bias),
        *([ABSENT] * 2),  # projection
        *(graph.variable((1, width)), graph.variable((1, width))),  # hidden state, cell
        *([ABSENT] * 4),  # layer normalisation
    ]
    operator = Operator(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        step.weights.lstm_version,
        "UnidirectionalSequenceLSTMOptions",
        (("fusedActivationFunction", _TANH), ("timeMajor", False)),
    )
    return graph.apply(operator, inputs, graph.activation((1, step.time, width)))


def _last(graph: Graph, states: int, time: int, width: int) -> int:
    """Cuts the last of the states `(1, time, width)` out."""
    bounds = ([0, time - 1, 0], [1, time, width], [1, 1, 1])
    begin, end, strides = (graph.constant(np.array(bound, np.int32)) for bound in bounds)
    whole_axes, time_axis = 0b101, 0b010
    masks = (("beginMask", whole_axes), ("endMask", whole_axes), ("shrinkAxisMask", time_axis))
    operator = Operator("STRIDED_SLICE", 1, "StridedSliceOptions", masks)
    return graph.apply(operator, [states, begin, end, strides], graph.activation((1, width)))


def _dense(graph: Graph, weights: Weights, dense: Dense, x: int) -> int:
    layer = dense.layer
    bias = np.zeros(layer.out_features, np.float32) if layer.bias is None else _numbers(layer.bias)
    inputs = [x, weights.store(graph, _numbers(layer.weight)), graph.constant(bias)]
    activation = (("fusedActivationFunction", _RELU if dense.relu else 0),)
    operator = Operator(
        "FULLY_CONNECTED", weights.dense_version, "FullyConnectedOptions", activation
    )
    return graph.apply(operator, inputs, graph.activation((1, layer.out_features)))


def _numbers(values: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = values.detach().float().numpy()
    if not np.isfinite(numbers).all():
        raise ExportError("the weights hold NaN or infinite values: the training diverged")
    return numbers


def _as_float32(graph: Graph, values: NDArray[np.float32]) -> int:
    return graph.constant(values)


def _as_float16(graph: Graph, values: NDArray[np.float32]) -> int:
    limit = np.finfo(np.float16).max
    half = graph.constant(np.clip(values, -limit, limit).astype(np.float16))
    return graph.apply(Operator("DEQUANTIZE", 3), [half], graph.activation(values.shape))


def _as_int8(graph: Graph, values: NDArray[np.float32]) -> int:
    """One scale a tensor: a scale a channel is silently wrong on tflite-runtime 2.14."""
    scale = float(np.abs(values).max()) / 127 or 1.0
    steps = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
    return graph.constant(steps, scale)


FLOAT32 = Weights(_as_float32)
FLOAT16 = Weights(_as_float16)
INT8 = Weights(_as_int8, lstm_version=2, dense_version=3)
