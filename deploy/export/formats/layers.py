"""Layers that every recurrent file has, and how its weights are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.export.formats.graph import Graph, Operator
from deploy.export.formats.recurrent import Dense, Layer
from shared_models.errors import ExportError

RELU, TANH = 1, 4  # of schema.ActivationFunctionType
GATES = 4  # of an LSTM: input, forget, cell, output; the same order in torch and in TFLite

Store: TypeAlias = Callable[[Graph, NDArray[np.float32]], int]
"""Adds weights to a graph and returns the tensor that has them."""


@dataclass(frozen=True)
class Stores:
    """How a file keeps weights: tables of floats, of dense layers, biases of recurrent ones."""

    floats: Store
    dense: Store
    biases: Store


def numbers(values: Tensor) -> NDArray[np.float32]:
    """Returns weights; raises `ExportError` where they are no numbers."""
    found: NDArray[np.float32] = values.detach().float().numpy()
    if not np.isfinite(found).all():
        raise ExportError("the weights hold NaN or infinite values: the training diverged")
    return found


def recurrent_numbers(layer: Layer, place: int) -> tuple[NDArray[np.float32], ...]:
    """Returns what the input is multiplied by, what the state is, and the bias, of one layer."""
    of_input, of_state, *bias = (
        numbers(getattr(layer, f"{name}_l{place}"))
        for name in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if layer.bias else ()))
    )
    # torch has two biases that are only ever added.
    return of_input, of_state, sum(bias, np.zeros(len(of_input), np.float32))


def has_relu(layer: Layer) -> bool:
    """Whether a simple recurrent layer has a ReLU in the place of the tanh."""
    return getattr(layer, "nonlinearity", "tanh") == "relu"


def embed(graph: Graph, embedding: nn.Embedding, tokens: int, store: Store) -> int:
    """Adds the rows of a table, `(1, time, width)` for tokens `(1, time)`."""
    table = store(graph, numbers(embedding.weight))
    out = graph.activation((*graph.form(tokens)[0], embedding.embedding_dim))
    return graph.apply(Operator("GATHER", 1, "GatherOptions"), [table, tokens], out)


def dense(graph: Graph, layer: Dense, x: int, store: Store) -> int:
    """Adds a dense layer on `(1, width)`."""
    weights, linear = numbers(layer.layer.weight), layer.layer
    bias = np.zeros(len(weights), np.float32) if linear.bias is None else numbers(linear.bias)
    inputs = [x, store(graph, weights), graph.constant(bias)]
    settings = (("fusedActivationFunction", RELU),) if layer.relu else ()
    return graph.apply(fully_connected(settings), inputs, graph.activation((1, len(weights))))


def fully_connected(settings: tuple[tuple[str, int | bool], ...] = ()) -> Operator:
    """Returns the operator, in the version that takes int8 weights for floats."""
    return Operator("FULLY_CONNECTED", 3, "FullyConnectedOptions", settings)


def as_float32(graph: Graph, values: NDArray[np.float32]) -> int:
    """Stores weights as they are."""
    return graph.constant(values)


def as_float16(graph: Graph, values: NDArray[np.float32]) -> int:
    """Stores weights in half the bytes; the runtime makes them float32 once."""
    limit = np.finfo(np.float16).max
    half = graph.constant(np.clip(values, -limit, limit).astype(np.float16))
    return graph.apply(Operator("DEQUANTIZE", 3), [half], graph.activation(values.shape))


def as_steps(graph: Graph, values: NDArray[np.float32]) -> int:
    """Stores weights in a quarter of the bytes, as int8 steps of one scale."""
    scale = float(np.abs(values).max()) / 127 or 1.0
    return graph.constant(np.round(values / scale).astype(np.int8), scale)


def as_int8(graph: Graph, values: NDArray[np.float32]) -> int:
    """Stores the same; the runtime makes them float32 once."""
    steps = as_steps(graph, values)
    return graph.apply(Operator("DEQUANTIZE", 2), [steps], graph.activation(values.shape))


FLOAT32 = Stores(as_float32, as_float32, as_float32)
# tflite-runtime 2.14 adds wrong numbers where a float16 bias is added.
FLOAT16 = Stores(as_float16, as_float16, as_float32)
INT8 = Stores(as_int8, as_steps, as_int8)
