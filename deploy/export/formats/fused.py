"""Recurrent classifiers as TFLite with one fused operator a layer.

A converter unrolls an LSTM over time: large on disk and in memory, slow to load.
`UNIDIRECTIONAL_SEQUENCE_LSTM` takes the whole sequence, `UNIDIRECTIONAL_SEQUENCE_RNN` is its simple
relative. Their state is kept in variables: `reset_all_variables` begins a new sequence.

Smaller weights are turned into float32 once, when the file is first run. The operator takes int8
weights as they are too, and then quantizes every state: that was two to four times as slow on both
runtimes, and less exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.export.formats.graph import ABSENT, Graph, Operator
from deploy.export.formats.recurrent import Dense, Recurrent
from deploy.export.formats.recurrent import Layer as Layers
from shared_models.errors import ExportError

_RELU, _TANH = 1, 4  # of schema.ActivationFunctionType
_GATES = 4  # input, forget, cell, output: the same order in torch and in TFLite

Store: TypeAlias = Callable[[Graph, NDArray[np.float32]], int]
"""Adds weights to a graph and returns the tensor that has them in float32."""


def write_fused(model: Recurrent, shape: Sequence[int], store: Store) -> bytes:
    """Returns a file for one sequence of `shape`: `(time,)` tokens or `(time, channels)` floats."""
    graph, time = Graph(), shape[0]
    writing = _Writing(graph, store, time)
    is_tokens = model.embedding is not None
    x = entry = graph.activation((1, *shape), np.int32 if is_tokens else np.float32)
    if model.embedding is not None:
        x = _embed(writing, model.embedding, x)
    for layers in model.layers:
        for layer in range(layers.num_layers):
            write = _lstm if isinstance(layers, nn.LSTM) else _rnn
            x = write(writing, layers, layer, x)
    x = _last(writing, x, model.layers[-1].hidden_size)
    for dense in model.dense:
        x = _dense(writing, dense, x)
    return graph.to_bytes({"input": entry}, {"output": x})


@dataclass(frozen=True)
class _Writing:
    graph: Graph
    store: Store
    time: int


def _embed(writing: _Writing, embedding: nn.Embedding, tokens: int) -> int:
    table = writing.store(writing.graph, _numbers(embedding.weight))
    out = writing.graph.activation((1, writing.time, embedding.embedding_dim))
    return writing.graph.apply(Operator("GATHER", 1, "GatherOptions"), [table, tokens], out)


def _lstm(writing: _Writing, lstm: Layers, layer: int, x: int) -> int:
    graph, width = writing.graph, lstm.hidden_size

    def gates(name: str) -> list[NDArray[np.float32]]:
        return np.split(_numbers(getattr(lstm, f"{name}_l{layer}")), _GATES)

    def stored(name: str) -> list[int]:
        return [writing.store(graph, part) for part in gates(name)]

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
        1,
        "UnidirectionalSequenceLSTMOptions",
        (("fusedActivationFunction", _TANH), ("timeMajor", False)),
    )
    return graph.apply(operator, inputs, graph.activation((1, writing.time, width)))


def _rnn(writing: _Writing, rnn: Layers, layer: int, x: int) -> int:
    graph, width = writing.graph, rnn.hidden_size

    def numbers(name: str) -> NDArray[np.float32]:
        return _numbers(getattr(rnn, f"{name}_l{layer}"))

    bias = np.zeros(width, np.float32)
    if rnn.bias:
        bias = numbers("bias_ih") + numbers("bias_hh")
    weights = [writing.store(graph, numbers(name)) for name in ("weight_ih", "weight_hh")]
    inputs = [x, *weights, graph.constant(bias), graph.variable((1, width))]
    activation = _RELU if getattr(rnn, "nonlinearity", "tanh") == "relu" else _TANH
    settings = (("fusedActivationFunction", activation), ("timeMajor", False))
    operator = Operator("UNIDIRECTIONAL_SEQUENCE_RNN", 1, "SequenceRNNOptions", settings)
    return graph.apply(operator, inputs, graph.activation((1, writing.time, width)))


def _last(writing: _Writing, states: int, width: int) -> int:
    """Cuts the last of the states `(1, time, width)` out."""
    graph, time = writing.graph, writing.time
    bounds = ([0, time - 1, 0], [1, time, width], [1, 1, 1])
    begin, end, strides = (graph.constant(np.array(bound, np.int32)) for bound in bounds)
    whole_axes, time_axis = 0b101, 0b010
    masks = (("beginMask", whole_axes), ("endMask", whole_axes), ("shrinkAxisMask", time_axis))
    operator = Operator("STRIDED_SLICE", 1, "StridedSliceOptions", masks)
    return graph.apply(operator, [states, begin, end, strides], graph.activation((1, width)))


def _dense(writing: _Writing, dense: Dense, x: int) -> int:
    graph, layer = writing.graph, dense.layer
    bias = np.zeros(layer.out_features, np.float32) if layer.bias is None else _numbers(layer.bias)
    inputs = [x, writing.store(graph, _numbers(layer.weight)), graph.constant(bias)]
    activation = (("fusedActivationFunction", _RELU if dense.relu else 0),)
    operator = Operator("FULLY_CONNECTED", 1, "FullyConnectedOptions", activation)
    return graph.apply(operator, inputs, graph.activation((1, layer.out_features)))


def _numbers(values: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = values.detach().float().numpy()
    if not np.isfinite(numbers).all():
        raise ExportError("the weights hold NaN or infinite values: the training diverged")
    return numbers


def as_float32(graph: Graph, values: NDArray[np.float32]) -> int:
    """Stores weights as they are."""
    return graph.constant(values)


def as_float16(graph: Graph, values: NDArray[np.float32]) -> int:
    """Stores weights in half the bytes."""
    limit = np.finfo(np.float16).max
    half = graph.constant(np.clip(values, -limit, limit).astype(np.float16))
    return graph.apply(Operator("DEQUANTIZE", 3), [half], graph.activation(values.shape))


def as_int8(graph: Graph, values: NDArray[np.float32]) -> int:
    """Stores weights in a quarter of the bytes, with one scale a tensor."""
    scale = float(np.abs(values).max()) / 127 or 1.0
    steps = graph.constant(np.round(values / scale).astype(np.int8), scale)
    return graph.apply(Operator("DEQUANTIZE", 2), [steps], graph.activation(values.shape))
