"""Recurrent classifiers as TFLite with one loop a layer.

A converter unrolls a recurrent layer over time: large on disk and in memory, slow to load. Here one
dense layer takes the input of all steps, then `WHILE` runs the few operators of a step, for which
runtimes have their fastest kernels. Every invocation begins with a state of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from torch import nn

from deploy.export.formats.graph import ABSENT, Graph, Operator
from deploy.export.formats.layers import (
    GATES,
    Stores,
    dense,
    embed,
    fully_connected,
    has_relu,
    recurrent_numbers,
)
from deploy.export.formats.recurrent import Layer, Recurrent

Tensors: TypeAlias = Sequence[int]
Step: TypeAlias = Callable[[Graph, Tensors], Tensors]
"""Adds the operators of one run of a loop: from what it is handed, what it hands to the next."""


def write_looped(model: Recurrent, shape: Sequence[int], stores: Stores) -> bytes:
    """Returns a file for one sequence of `shape`: `(time,)` tokens or `(time, channels)` floats."""
    graph = Graph()
    x = entry = graph.activation((1, *shape), np.float32 if model.embedding is None else np.int32)
    if model.embedding is not None:
        x = embed(graph, model.embedding, x, stores.floats)
    layers = [(own, place) for own in model.layers for place in range(own.num_layers)]
    for layer in layers:
        x = _layer(graph, layer, x, stores, whole=layer != layers[-1])
    for last in model.dense:
        x = dense(graph, last, x, stores.dense)
    return graph.to_bytes({"input": entry}, {"output": x})


def _layer(graph: Graph, of: tuple[Layer, int], x: int, stores: Stores, *, whole: bool) -> int:
    """Adds a layer over `(time, width)`; returns its last state `(1, width)`, or the `whole`."""
    of_input, of_state, bias = recurrent_numbers(*of)
    time, width = graph.form(x)[0][-2], of[0].hidden_size
    # Of all steps at once: what does not depend on the state.
    weights = [stores.dense(graph, of_input), ABSENT]
    driven = graph.apply(fully_connected(), [x, *weights], graph.activation((time, len(bias))))
    driven = _apply(graph, "ADD", [driven, stores.biases(graph, bias)])
    advance = _lstm if isinstance(of[0], nn.LSTM) else _relu if has_relu(of[0]) else _tanh
    parts = 2 if advance is _lstm else 1

    def step(body: Graph, handed: Tensors) -> Tensors:
        (now, driven, *kept), states = handed[:-parts], handed[-parts:]
        weights = [stores.dense(body, of_state), ABSENT]
        recurring = body.apply(
            fully_connected(), [states[0], *weights], body.activation((1, len(bias)))
        )
        row = _apply(body, "GATHER", [driven, now], (1, len(bias)))
        states = advance(body, _apply(body, "ADD", [recurring, row]), states)
        kept = [_put(body, own, states[0], now) for own in kept]
        later = _apply(body, "ADD", [now, body.constant(np.ones(1, np.int32))])
        return [later, driven, *kept, *states]

    begin = [graph.constant(np.zeros(1, np.int32)), driven]
    begin += [_zeros(graph, (time, width))] * whole
    begin += [_zeros(graph, (1, width))] * parts
    return _repeat(graph, time, begin, step)[2]


def _lstm(body: Graph, driven: int, states: Tensors) -> Tensors:
    """Adds what an LSTM does with its gates' sums; returns the new hidden state and cell."""
    gates = [body.activation(*body.form(states[0])) for _ in range(GATES)]
    split = Operator("SPLIT", 1, "SplitOptions", (("numSplits", GATES),))
    body.apply_many(split, [body.constant(np.array(1, np.int32)), driven], gates)
    let_in, keep, let_out = (_apply(body, "LOGISTIC", [gates[k]]) for k in (0, 1, 3))
    new = _apply(body, "MUL", [let_in, _apply(body, "TANH", [gates[2]])])
    cell = _apply(body, "ADD", [_apply(body, "MUL", [keep, states[1]]), new])
    return [_apply(body, "MUL", [let_out, _apply(body, "TANH", [cell])]), cell]


def _tanh(body: Graph, driven: int, _: Tensors) -> Tensors:
    return [_apply(body, "TANH", [driven])]


def _relu(body: Graph, driven: int, _: Tensors) -> Tensors:
    return [_apply(body, "RELU", [driven])]


def _put(body: Graph, kept: int, state: int, now: int) -> int:
    """Puts a state `(1, width)` into its row of those that are kept, `(time, width)`."""
    first = body.constant(np.zeros(1, np.int32))
    place = body.apply(
        Operator("CONCATENATION", 1, "ConcatenationOptions"),
        [now, first],
        body.activation((2,), np.int32),
    )
    return _apply(body, "DYNAMIC_UPDATE_SLICE", [kept, state, place])


def _zeros(graph: Graph, shape: tuple[int, int]) -> int:
    """Adds zeros that take no room in the file."""
    parts = [graph.constant(np.array(shape, np.int32)), graph.constant(np.array(0, np.float32))]
    return graph.apply(Operator("FILL"), parts, graph.activation(shape))


def _apply(graph: Graph, name: str, inputs: Tensors, shape: Sequence[int] | None = None) -> int:
    """Adds an operator whose options are as by default; its output is like its first input."""
    own, dtype = graph.form(inputs[0])
    out = graph.activation(own if shape is None else shape, dtype)
    return graph.apply(Operator(name, 1, _OPTIONS.get(name, "")), inputs, out)


_OPTIONS = {
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "GATHER": "GatherOptions",
}


def _repeat(graph: Graph, times: int, begin: Tensors, step: Step) -> Tensors:
    """Adds a loop; the first of what is handed on counts its runs. Returns what the last gives."""
    forms = [graph.form(own) for own in begin]
    condition, body = Graph(graph), Graph(graph)
    asked = [condition.activation(*form) for form in forms]
    last = condition.constant(np.array([times], np.int32))
    goes_on = condition.activation((1,), np.bool_)
    condition.end(asked, [condition.apply(Operator("LESS"), [asked[0], last], goes_on)])
    handed = [body.activation(*form) for form in forms]
    body.end(handed, step(body, handed))
    graphs = (("condSubgraphIndex", condition.number), ("bodySubgraphIndex", body.number))
    ends = [graph.activation(*form) for form in forms]
    graph.apply_many(Operator("WHILE", 1, "WhileOptions", graphs), begin, ends)
    return ends
