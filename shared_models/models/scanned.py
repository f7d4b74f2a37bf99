"""Recurrent layers in plain operations, for function transforms.

torch's fused kernels cannot be mapped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from shared_models.errors import InputError


class ScannedLstm(nn.Module):
    """What `torch.nn.LSTM` computes, with the same parameters under the same names.

    The input projection of all time steps is one product; mapped over clients, it is one batched
    product for all time steps of all clients.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        for name, parameter in lstm.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Returns the hidden states `(n, time, width)` of the last layer."""
        weights = list(self.parameters())  # of a layer: input, recurrent, two biases
        for first in range(0, len(weights), 4):
            x = _layer(x, *weights[first : first + 4])
        return x, None


class ScannedRnn(nn.Module):
    """What `torch.nn.RNN` computes, with the same parameters under the same names."""

    def __init__(self, rnn: nn.RNN) -> None:
        super().__init__()
        self._bend = torch.relu if rnn.nonlinearity == "relu" else torch.tanh
        for name, parameter in rnn.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Returns the hidden states `(n, time, width)` of the last layer."""
        weights = list(self.parameters())
        for first in range(0, len(weights), 4):
            w_x, w_h, b_x, b_h = weights[first : first + 4]
            projected = linear(x, w_x, b_x + b_h)
            hidden = torch.zeros_like(projected[:, 0])
            states = []
            for time in range(x.shape[1]):
                hidden = self._bend(projected[:, time] + linear(hidden, w_h))
                states.append(hidden)
            x = torch.stack(states, dim=1)
        return x, None


def _layer(x: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> Tensor:
    projected = linear(x, w_x, b_x + b_h)
    hidden = cell = torch.zeros_like(projected[:, 0, : w_h.shape[1]])
    states = []
    for time in range(x.shape[1]):
        gates = projected[:, time] + linear(hidden, w_h)
        enter, forget, content, leave = gates.chunk(4, dim=1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * content.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        states.append(hidden)
    return torch.stack(states, dim=1)


def scanned(model: nn.Module) -> nn.Module:
    """Replaces every LSTM and RNN inside `model` by its scanned form; returns the model.

    Raises `InputError` for one that has no such form.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.LSTM | nn.RNN):
            _require_plain(name, child)
        if isinstance(child, nn.LSTM):
            setattr(model, name, ScannedLstm(child))
        elif isinstance(child, nn.RNN):
            setattr(model, name, ScannedRnn(child))
        else:
            scanned(child)
    return model


def _require_plain(name: str, layer: nn.LSTM | nn.RNN) -> None:
    """Raises `InputError` unless a layer is as the scanned forms take it to be."""
    odd = layer.bidirectional or layer.proj_size or layer.dropout
    if not layer.batch_first or not layer.bias or odd:
        raise InputError(
            f"layer {name} ({type(layer).__name__}) is not batch_first=True with a bias, in one "
            "direction and without projection and dropout: it cannot be mapped over clients"
        )
