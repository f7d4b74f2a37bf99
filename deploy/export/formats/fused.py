"""One time step of a recurrent classifier as TFLite, which keeps its state.

The operators `UNIDIRECTIONAL_SEQUENCE_LSTM` and `UNIDIRECTIONAL_SEQUENCE_RNN` have their state in
variables: it stays from one invocation to the next, and `reset_all_variables` begins anew.

Their weights become float32 once, when the file is first run: as int8 the operators were two to
four times as slow on x86, and less exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from deploy.export.formats.graph import ABSENT, Graph, Operator
from deploy.export.formats.layers import (
    GATES,
    RELU,
    TANH,
    Store,
    dense,
    embed,
    has_relu,
    recurrent_numbers,
)
from deploy.export.formats.recurrent import Layer, Recurrent


def write_step(model: Recurrent, shape: Sequence[int], store: Store) -> bytes:
    """Returns a file that takes a step of sequences of `shape`: `(time,)` or `(time, channels)`."""
    graph, step = Graph(), (1, 1, *shape[1:])
    x = entry = graph.activation(step, np.float32 if model.embedding is None else np.int32)
    if model.embedding is not None:
        x = embed(graph, model.embedding, x, store)
    for layers in model.layers:
        write = _lstm if isinstance(layers, nn.LSTM) else _rnn
        for place in range(layers.num_layers):
            x = write(graph, (layers, place), x, store)
    for layer in model.dense:
        x = dense(graph, layer, x, store)
    return graph.to_bytes({"input": entry}, {"output": x})


def _lstm(graph: Graph, of: tuple[Layer, int], x: int, store: Store) -> int:
    of_input, of_state, bias = (np.split(part, GATES) for part in recurrent_numbers(*of))
    state = (1, of[0].hidden_size)
    inputs = [
        *(x, *(store(graph, part) for part in (*of_input, *of_state))),
        *([ABSENT] * 3),  # peepholes
        *(graph.constant(part) for part in bias),
        *([ABSENT] * 2),  # projection
        *(graph.variable(state), graph.variable(state)),  # hidden state, cell
        *([ABSENT] * 4),  # layer normalisation
    ]
    name, options = "UNIDIRECTIONAL_SEQUENCE_LSTM", "UnidirectionalSequenceLSTMOptions"
    operator = Operator(name, 1, options, (("fusedActivationFunction", TANH),))
    return graph.apply(operator, inputs, graph.activation((1, *state)))


def _rnn(graph: Graph, of: tuple[Layer, int], x: int, store: Store) -> int:
    of_input, of_state, bias = recurrent_numbers(*of)
    state, activation = (1, of[0].hidden_size), RELU if has_relu(of[0]) else TANH
    weights = [store(graph, part) for part in (of_input, of_state)]
    inputs = [x, *weights, graph.constant(bias), graph.variable(state)]
    settings = (("fusedActivationFunction", activation),)
    operator = Operator("UNIDIRECTIONAL_SEQUENCE_RNN", 1, "SequenceRNNOptions", settings)
    return graph.apply(operator, inputs, graph.activation((1, *state)))
