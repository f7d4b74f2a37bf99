"""Simulated quantization: a model that computes as its int8 file will, and can still be trained.

Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", CVPR 2018 (arXiv 1712.05877), section 3. Rounding has no useful slope: the gradient goes
straight through (Bengio et al., "Estimating or propagating gradients through stochastic neurons for
conditional computation", 2013, arXiv 1308.3432, section 4).

Weights are on the grid of the exported files (deploy/export/formats): symmetric, `max|w|` is the
last step; a scale a channel for convolutions, one for each matrix of dense and recurrent layers.
Activations are on the asymmetric grid of TFLite, in the range of the batch: unlike the paper's
moving average, that is no state which clients would have to agree on. What a ReLU follows is
rounded after it, as files fuse the two. Batch normalisation needs no folding where scales are a
channel's: rounding commutes with scaling a channel.

In a recurrent model only weights are rounded: what its files round of states, each step by its own
range, is little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional

from shared_models.errors import InputError, one_line
from shared_models.models.scanned import ScannedLstm, ScannedRnn
from shared_models.noise import Dropout
from shared_models.tracing import CalmTracer

Scales: TypeAlias = Literal["exported", "tensor", "channel"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, ScannedLstm, ScannedRnn)


@dataclass(frozen=True)
class Grid:
    """How finely a model is rounded, in bits, and what shares a scale."""

    weight_bits: int = 8
    activation_bits: int = 8
    scales: Scales = "exported"


def round_weights(weights: Tensor, bits: int, groups: int = 1) -> Tensor:
    """Returns the nearest steps of a symmetric grid; its gradient is that of the identity.

    The first axis is cut into `groups` that have a scale each: 1 for all, its length for channels.

    >>> round_weights(torch.tensor([0.5, -1.0]), bits=2).tolist()
    [0.0, -1.0]
    """
    parts = weights.reshape(groups, -1)
    largest = parts.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    steps = (parts / scale).round() * scale
    return _straight_through(weights, steps.reshape(weights.shape))


def round_activations(values: Tensor, bits: int) -> Tensor:
    """Returns the nearest steps of an asymmetric grid over the values' range, which holds zero."""
    low, high = values.amin().clamp(max=0.0), values.amax().clamp(min=0.0)
    last = 2**bits - 1
    scale = torch.where(high > low, (high - low) / last, 1.0)
    zero = (-low / scale).round()
    steps = ((values / scale).round() + zero).clamp(0, last)
    return _straight_through(values, (steps - zero) * scale)


def _straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    # In this order the value is `rounded` to the last bit: what is added is zero.
    return rounded.detach() + (exact - exact.detach())


class _Rounded(nn.Module):
    """A layer that computes with rounded weights; its own parameters, and their names, stay."""

    def __init__(self, layer: nn.Module, grid: Grid) -> None:
        super().__init__()
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)
        self._layer = (
            layer,
        )  # in a tuple: as a submodule it would give its parameters other names
        self._grid = grid

    def forward(self, *inputs: Any) -> Any:
        """Returns what the layer gives."""
        return functional_call(self._layer[0], self.rounded(), inputs)

    def rounded(self) -> dict[str, Tensor]:
        """Returns the parameters as a file would have them; biases stay."""
        (layer,), grid = self._layer, self._grid
        return {
            name: round_weights(own, grid.weight_bits, _groups(layer, own, grid.scales))
            if "weight" in name
            else own
            for name, own in self.named_parameters()
        }


def _groups(layer: nn.Module, weights: Tensor, scales: Scales) -> int:
    if scales == "channel" or (scales == "exported" and isinstance(layer, CONVOLUTIONS)):
        return len(weights)
    return 1


def rounding(model: nn.Module, grid: Grid) -> nn.Module:
    """Returns a model with the same parameters that computes as its quantized file would.

    `model` is used up. Raises `InputError` where torch.fx cannot trace one that is not recurrent.
    """
    if not any(isinstance(part, RECURRENT) for part in model.modules()):
        model = _with_rounded_activations(model, grid.activation_bits)
    for parent, name, layer in list(_weighted(model)):
        setattr(parent, name, _Rounded(layer, grid))
    return model


def _weighted(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yields each layer whose weights files quantize, with its parent and its name there."""
    for name, child in model.named_children():
        if isinstance(child, (nn.Linear, *CONVOLUTIONS, *RECURRENT)):
            yield model, name, child
        else:
            yield from _weighted(child)


class _Tracer(CalmTracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Its mask comes in from outside, by the module's name.
        return isinstance(m, Dropout) or super().is_leaf_module(m, module_qualified_name)


def _with_rounded_activations(model: nn.Module, bits: int) -> GraphModule:
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # it runs the model's own code
        told = one_line(f"{type(error).__name__}: {error}", 160)
        raise InputError(
            f"quantize_aware: torch.fx cannot trace this model, so that its activations "
            f"cannot be rounded: {told}"
        ) from None
    for node in list(graph.nodes):
        if _is_stored(model, node):
            _round_after(graph, node, bits)
    return GraphModule(model, graph)


def _is_stored(model: nn.Module, node: Node) -> bool:
    """Whether a file has a node's value in int8: not a weight, not what a ReLU is fused into."""
    if node.op in ("get_attr", "output"):
        return False
    return not (node.users and all(_is_relu(model, user) for user in node.users))


def _is_relu(model: nn.Module, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.ReLU)
    return node.target in _RELUS


_RELUS: tuple[str | Callable[..., Any], ...] = (torch.relu, functional.relu, "relu")


def _round_after(graph: Graph, node: Node, bits: int) -> None:
    users = list(node.users)
    with graph.inserting_after(node):
        rounded = graph.call_function(_round_if_float, (node, bits))
    for user in users:
        user.replace_input_with(node, rounded)


def _round_if_float(value: Any, bits: int) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return round_activations(value, bits)
    return value
