"""Models that are a chain of known layers, recognised in their traced graph."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from clients.kernels.compiled import CompiledLastState, fits_compiled
from clients.kernels.layers import (
    Convolution,
    Dense,
    Embedding,
    FirstConvolution,
    Flatten,
    Geometry,
    Layer,
    MaxPool,
    Relu,
)
from clients.kernels.layout import Columns
from clients.kernels.recurrent import last_state
from clients.training import Unfit
from shared_models.arrays import Arrays
from shared_models.tracing import graph_of

_EVERYTHING = slice(None, None, None)


@dataclass(frozen=True)
class Link:
    """A module of the chain, and the name under which its weights stand."""

    name: str
    module: nn.Module


def chain_of(model: nn.Module) -> tuple[Link, ...]:
    """Returns the model's layers in order; `Unfit` unless it is a chain of layers known here.

    ReLU and max-pooling commute: pooling comes first, on four times as many elements as ReLU then
    sees.
    """
    try:
        graph = graph_of(model).graph
    except Exception as error:  # whatever a model's own code does with a proxy
        raise Unfit(f"its graph cannot be traced: {error}") from None
    modules = dict(model.named_modules())
    links = list(_links(list(graph.nodes), modules))
    for place in range(len(links) - 1):
        first, second = links[place : place + 2]
        if isinstance(first.module, nn.ReLU) and isinstance(second.module, nn.MaxPool2d):
            links[place : place + 2] = second, first
    return tuple(links)


def _links(nodes: Sequence[fx.Node], modules: dict[str, nn.Module]) -> Iterator[Link]:
    start, *inner, end = nodes
    before = start
    places = iter(inner)
    for node in places:
        if node.op != "call_module" or node.args != (before,) or node.kwargs:
            raise Unfit(f"{node.name} is not a layer that follows another")
        module = modules[str(node.target)]
        _require_known(str(node.target), module)
        yield Link(str(node.target), module)
        before = _last_state(node, places) if isinstance(module, nn.LSTM) else node
    if end.args != (before,):
        raise Unfit("its output is not that of its last layer")


def _last_state(lstm: fx.Node, places: Iterator[fx.Node]) -> fx.Node:
    """Follows `states, _ = lstm(x); states[:, -1]` to its end."""
    states = _used(_getitem(lstm, 0, places))
    last = _getitem(states, (_EVERYTHING, -1), places)
    return _used(last)


def _getitem(of: fx.Node, index: Any, places: Iterator[fx.Node]) -> fx.Node:
    for node in places:
        if (
            node.op == "call_function"
            and node.target is operator.getitem
            and node.args == (of, index)
        ):
            return node
        if node.users:
            break
    raise Unfit(f"only the last state of {of.name} is known here")


def _used(node: fx.Node) -> fx.Node:
    if len(node.users) != 1:
        raise Unfit(f"{node.name} is used {len(node.users)} times")
    return node


def _require_known(name: str, module: nn.Module) -> None:
    known = {
        nn.Linear: True,
        nn.ReLU: True,
        nn.Flatten: getattr(module, "start_dim", 1) == 1 and getattr(module, "end_dim", -1) == -1,
        nn.Conv2d: getattr(module, "padding_mode", "") == "zeros",
        nn.MaxPool2d: not getattr(module, "ceil_mode", False)
        and not getattr(module, "return_indices", False)
        and getattr(module, "dilation", 1) == 1,
        nn.Embedding: getattr(module, "max_norm", None) is None
        and getattr(module, "padding_idx", None) is None,
        nn.LSTM: isinstance(module, nn.LSTM) and _is_plain(module),
    }
    if not known.get(type(module), False):
        raise Unfit(f"layer {name} ({type(module).__name__}) has no kernel of its own")


def _is_plain(lstm: nn.LSTM) -> bool:
    odd = lstm.bidirectional or lstm.proj_size or lstm.dropout
    return bool(lstm.batch_first and lstm.bias and not odd)


def columns_of(links: Sequence[Link], x: Tensor) -> Columns:
    """Returns which dense weights read a flattened image when the chain is given `x`."""
    images: dict[str, tuple[int, int, int]] = {}
    image: tuple[int, int, int] | None = None
    for link in links:
        if isinstance(link.module, nn.Flatten) and x.ndim == 4:
            _, c, h, w = x.shape
            image = (c, h, w)
        if isinstance(link.module, nn.Linear) and image is not None:
            images[f"{link.name}.weight"], image = image, None
        found = link.module(x)
        x = found[0][:, -1] if isinstance(link.module, nn.LSTM) else found
    return Columns(images)


@dataclass(frozen=True)
class Making:
    """How layers are made: over which weights, stepped by which rate, with kernels in C or not."""

    weights: Arrays
    rate: float
    compiled: bool = False


def make_layers(links: Sequence[Link], making: Making) -> list[Layer]:
    """Returns the chain's layers, which step their weights in place.

    Raises `Unfit` when compiled ones are asked for and no layer has one.
    """
    layers: list[Layer] = []
    trained = False  # whether there are weights below: then the gradient must go on down
    for link in links:
        layers.append(_make(link, making, wanted=trained))
        trained = trained or any(True for _ in link.module.parameters())
    if making.compiled and not any(isinstance(layer, CompiledLastState) for layer in layers):
        raise Unfit("none of its layers has a compiled kernel")
    return layers


def _make(link: Link, making: Making, *, wanted: bool) -> Layer:
    rate = making.rate
    own = {key: making.weights[f"{link.name}.{key}"] for key, _ in link.module.named_parameters()}
    made: Layer = Relu()
    match link.module:
        case nn.Linear():
            made = Dense(own["weight"], own.get("bias"), rate, wanted=wanted)
        case nn.Conv2d() as conv:
            made = _convolution(conv, own, rate, wanted=wanted)
        case nn.MaxPool2d() as pool:
            made = MaxPool(_pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding))
        case nn.Embedding():
            made = Embedding(own["weight"], rate)
        case nn.LSTM():
            flat = list(own.values())
            if making.compiled and fits_compiled(flat, wanted=wanted):
                made = CompiledLastState(flat, rate)
            else:
                made = last_state(flat, rate, wanted=wanted)
        case nn.Flatten():
            made = Flatten()
    return made


def _convolution(conv: nn.Conv2d, own: Arrays, rate: float, *, wanted: bool) -> Layer:
    geometry = Geometry(list(conv.stride), _padding(conv), list(conv.dilation), conv.groups)
    weight, bias = own["weight"], own.get("bias")
    if not wanted and FirstConvolution.fits(weight, geometry):
        return FirstConvolution(weight, bias, geometry, rate)
    return Convolution(weight, bias, geometry, rate, wanted=wanted)


def _padding(conv: nn.Conv2d) -> list[int]:
    if isinstance(conv.padding, tuple):
        return list(conv.padding)
    if conv.padding == "valid":
        return [0, 0]
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(size % 2 for size in reach):
        raise Unfit("'same' padding with an even kernel is not symmetric")
    return [size // 2 for size in reach]


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
