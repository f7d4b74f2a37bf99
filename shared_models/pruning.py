"""Structured pruning: channels and units are really removed, so that files shrink and run faster.

Li et al., "Pruning filters for efficient ConvNets", ICLR 2017 (arXiv 1608.08710), section 3.1: of
a layer's filters those with the smallest L1 norm of incoming weights go, in all layers at once from
the weights as they are ("independent"). Here also units of dense layers, and of LSTMs with all four
gates. How many stay depends on the model alone, which stay on the weights: so every side knows the
shapes, and the server alone does the cutting.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from shared_models.arrays import Arrays
from shared_models.errors import InputError
from shared_models.ranges import traced

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_WEIGHTED = (nn.Linear, nn.LSTM, *_CONVOLUTIONS)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_CHANNEL_BY_CHANNEL = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Hardswish,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Flatten,
)  # fmt: skip
_FUNCTIONS: tuple[object, ...] = (
    torch.relu, functional.relu, torch.tanh, torch.sigmoid, torch.flatten,
    functional.max_pool1d, functional.max_pool2d, "relu", "tanh", "sigmoid", "flatten",
)  # fmt: skip
_GATES = 4

Widths: TypeAlias = Mapping[str, int]
MakeModel: TypeAlias = Callable[[], nn.Module]


@dataclass(frozen=True)
class Link:
    """A layer of a row by its name, and the normalisations between it and the next one."""

    name: str
    norms: tuple[str, ...] = ()


def row_of(model: nn.Module) -> tuple[Link, ...]:
    """Returns the layers with weights of a model in which one follows another.

    Raises `InputError` that names what cannot be cut.
    """
    links: list[Link] = []
    for node in traced(model).graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        part = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(part, _WEIGHTED) and len(node.all_input_nodes) == 1:
            _require_plain(str(node.target), part, links)
            links.append(Link(str(node.target)))
        elif isinstance(part, _NORMS) and links and _is_channel_wise(part, model, links[-1]):
            links[-1] = Link(links[-1].name, (*links[-1].norms, str(node.target)))
        elif not _is_known(node, part, model.get_submodule(links[-1].name) if links else None):
            raise _no_row(node, part)
    _require_fit(model, links)
    return tuple(links)


def _is_channel_wise(norm: nn.Module, model: nn.Module, link: Link) -> bool:
    """Whether a normalisation has a number for each unit: after a flattened image it has more."""
    return bool(getattr(norm, "num_features", None) == _outputs(model.get_submodule(link.name)))


def _require_plain(name: str, part: nn.Module, before: Sequence[Link]) -> None:
    odd = ""
    if isinstance(part, _CONVOLUTIONS) and part.groups != 1:
        odd = "its channels come in groups"
    if isinstance(part, nn.LSTM) and (part.bidirectional or part.proj_size):
        odd = "it is bidirectional or projects its state"
    if any(link.name == name for link in before):
        odd = "it is used twice"
    if odd:
        raise InputError(f"prune: layer {name!r} cannot be cut: {odd}")


def _is_known(node: Node, part: nn.Module | None, last: nn.Module | None) -> bool:
    """Whether each channel of the result comes from the same channel of the one input.

    What is done before the first layer does not matter.
    """
    if len(node.all_input_nodes) != 1:
        return False
    if last is None:
        return part is None or isinstance(part, (nn.Embedding, *_CHANNEL_BY_CHANNEL))
    if node.target is operator.getitem:
        return isinstance(last, nn.LSTM)  # its states, and the last of them
    return isinstance(part, _CHANNEL_BY_CHANNEL) or (part is None and node.target in _FUNCTIONS)


def _no_row(node: Node, part: nn.Module | None) -> InputError:
    what = f"layer {node.target!r} ({type(part).__name__})" if part else f"operation {node.name!r}"
    return InputError(
        f"prune: {what} is none of those whose channels are known: convolutions, dense layers and "
        "LSTMs in a row, with batch normalisation, pooling and activations between them"
    )


def _require_fit(model: nn.Module, links: Sequence[Link]) -> None:
    if len(links) < 2:
        raise InputError("prune: the model has no two layers of which the first could be cut")
    for link, after in _pairs(links):
        left, right = model.get_submodule(link.name), model.get_submodule(after.name)
        spread, rest = divmod(_inputs(right), _outputs(left))
        if rest or (spread > 1 and not isinstance(left, _CONVOLUTIONS)):
            raise InputError(
                f"prune: what {after.name!r} takes are not the channels of {link.name!r}"
            )


def _pairs(links: Sequence[Link]) -> Iterator[tuple[Link, Link]]:
    return itertools.pairwise(links)


def _inputs(layer: nn.Module) -> int:
    key = "in_channels" if isinstance(layer, _CONVOLUTIONS) else "in_features"
    return int(getattr(layer, "input_size" if isinstance(layer, nn.LSTM) else key))


def _outputs(layer: nn.Module) -> int:
    key = "out_channels" if isinstance(layer, _CONVOLUTIONS) else "out_features"
    return int(getattr(layer, "hidden_size" if isinstance(layer, nn.LSTM) else key))


@dataclass(frozen=True)
class Cut:
    """How much stays: a share of the units of every layer whose arrays begin with a prefix."""

    keep: float
    prefixes: tuple[str, ...] = ()

    def widths(self, model: nn.Module, links: Sequence[Link]) -> Widths:
        """Returns the units that stay, by the names of the layers that are cut."""
        prefixes = self.prefixes or ("",)
        chosen = [k.name for k in links[:-1] if f"{k.name}.weight".startswith(prefixes)]
        if not chosen:
            raise InputError(f"prefixes: no layer that can be cut begins with {list(prefixes)}")
        return {n: _kept(self.keep, _outputs(model.get_submodule(n))) for n in chosen}


def _kept(share: float, units: int) -> int:
    """Returns how many units stay.

    >>> _kept(0.55, 100)
    55
    """
    return math.ceil(round(share * units, 9))


def narrowed(make_model: MakeModel, cut: Cut) -> MakeModel:
    """Returns what makes the narrower model: of the same class, with smaller layers in it."""

    def make() -> nn.Module:
        model = make_model()
        links = row_of(model)
        _narrow(model, links, cut.widths(model, links))
        return model.train()

    return make


def _narrow(model: nn.Module, links: Sequence[Link], widths: Widths) -> None:
    whole, narrow = 1, 1  # of the layer before
    for link in links:
        old = model.get_submodule(link.name)
        inputs = _inputs(old) // whole * narrow
        whole, narrow = _outputs(old), widths.get(link.name, _outputs(old))
        model.set_submodule(link.name, _resized(old, inputs, narrow))
        for name in link.norms:
            model.set_submodule(name, _resized(model.get_submodule(name), narrow, narrow))


def _resized(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, layer.bias is not None)
    if isinstance(layer, nn.LSTM):
        settings = (layer.num_layers, layer.bias, layer.batch_first, layer.dropout)
        return nn.LSTM(inputs, outputs, *settings)
    if isinstance(layer, _NORMS):
        momentum, running = layer.momentum, layer.track_running_stats
        return type(layer)(outputs, layer.eps, momentum, layer.affine, running)
    assert isinstance(layer, _CONVOLUTIONS)  # noqa: S101 - `row_of` has seen to it
    kind: Any = type(layer)
    return kind(  # type: ignore[no-any-return]
        inputs, outputs, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        bias=layer.bias is not None, padding_mode=layer.padding_mode,
    )  # fmt: skip


def pruned(make_model: MakeModel, cut: Cut, arrays: Arrays) -> Arrays:
    """Returns the arrays of the narrower model, cut out of `arrays`, which `make_model` fits."""
    with torch.device("meta"):
        model = make_model()
    links = row_of(model)
    found = dict(arrays)
    widths = cut.widths(model, links)
    for link, after in _pairs(links):
        if link.name not in widths:
            continue
        layer = model.get_submodule(link.name)
        last = _cut_units(found, arrays, link, layer, widths[link.name])
        for norm in link.norms:
            _take(found, f"{norm}.", last, ("weight", "bias", "running_mean", "running_var"))
        _cut_inputs(found, after.name, model.get_submodule(after.name), last, _outputs(layer))
    return {name: own.contiguous() for name, own in found.items()}


def _cut_units(found: Arrays, arrays: Arrays, link: Link, layer: nn.Module, width: int) -> Tensor:
    """Cuts a layer's units in `found`; returns the places of those that stay, in their order."""
    if isinstance(layer, nn.LSTM):
        return _cut_lstm(found, arrays, link.name, layer, width)
    stay = _largest(arrays[f"{link.name}.weight"].flatten(1), width)
    _take(found, f"{link.name}.", stay, ("weight", "bias"))
    return stay


def _cut_lstm(found: Arrays, arrays: Arrays, name: str, lstm: nn.LSTM, width: int) -> Tensor:
    stay = torch.arange(lstm.hidden_size)
    for layer in range(lstm.num_layers):
        below, keys = stay, ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        incoming = [arrays[f"{name}.{key}_l{layer}"] for key in keys[:2]]
        units = torch.stack(torch.cat(incoming, dim=1).chunk(_GATES), dim=1)
        stay = _largest(units.flatten(1), width)
        rows = torch.cat([stay + gate * lstm.hidden_size for gate in range(_GATES)])
        _take(found, f"{name}.", rows, [f"{key}_l{layer}" for key in keys])
        _columns(found, f"{name}.weight_hh_l{layer}", stay)
        if layer:
            _columns(found, f"{name}.weight_ih_l{layer}", below)
    return stay


def _cut_inputs(found: Arrays, name: str, layer: nn.Module, stay: Tensor, whole: int) -> None:
    spread = _inputs(layer) // whole  # pixels a channel, where an image was flattened
    places = (stay[:, None] * spread + torch.arange(spread)).flatten()
    key = "weight_ih_l0" if isinstance(layer, nn.LSTM) else "weight"
    _columns(found, f"{name}.{key}", places)


def _largest(units: Tensor, count: int) -> Tensor:
    """Returns the places of the `count` rows with the largest L1 norm; of equals the first."""
    norms = units.double().abs().sum(dim=1)
    return torch.sort(norms, descending=True, stable=True).indices[:count].sort().values


def _take(found: Arrays, prefix: str, rows: Tensor, keys: Sequence[str]) -> None:
    for key in keys:
        if prefix + key in found:
            found[prefix + key] = found[prefix + key][rows]


def _columns(found: Arrays, name: str, columns: Tensor) -> None:
    found[name] = found[name][:, columns]
