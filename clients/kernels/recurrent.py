"""The last state of an LSTM, by torch's own kernels, with weights stepped in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clients.kernels.products import has_onednn

_aten = torch.ops.aten
_LSTM = 2  # torch's number for this kind of recurrent network


class LastState:
    """Sequences `(n, time, channels)` to the last hidden state `(n, width)` of stacked LSTMs.

    `weights` are torch's: input, recurrent, and two biases per layer.
    """

    def __init__(self, weights: Sequence[Tensor], rate: float, *, wanted: bool) -> None:
        self._weights, self._rate, self._wanted = list(weights), rate, wanted
        self._depth, self._width = len(weights) // 4, weights[1].shape[1]
        self._tape: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        start = x.new_zeros(self._depth, len(x), self._width)
        leaves = [tensor.detach().requires_grad_() for tensor in self._weights]
        source = x.detach().requires_grad_(self._wanted)
        with torch.enable_grad():
            states, _, _ = torch.lstm(
                source, (start, start), leaves, True, self._depth, 0.0, True, False, True
            )
            last = states[:, -1]
        self._tape = [last, *leaves, *([source] if self._wanted else [])]
        return last.detach()

    def backward(self, d: Tensor) -> Tensor | None:
        last, *leaves = self._tape
        self._tape = []
        gradients = torch.autograd.grad(last, leaves, d)
        count = len(self._weights)
        torch._foreach_add_(self._weights, list(gradients[:count]), alpha=-self._rate)
        return gradients[count] if self._wanted else None


class OneDnnLastState:
    """The same by oneDNN's kernel without autograd around it: a sixth faster for small ones."""

    def __init__(self, weights: Sequence[Tensor], rate: float, *, wanted: bool) -> None:
        self._weights, self._rate, self._wanted = list(weights), rate, wanted
        self._width = weights[1].shape[1]
        self._tape: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        below = x.transpose(0, 1).contiguous()
        zero = x.new_zeros(len(x), self._width)
        self._tape = []
        for weights in self._layers():
            # oneDNN keeps what the backward pass needs only where gradients are enabled.
            with torch.enable_grad():
                kept = _aten.mkldnn_rnn_layer.default(
                    below, *weights, zero, zero, False, [], *self._kind(), False, True
                )
            self._tape.append((below, zero, kept))
            below = kept[0]
        return below[-1].clone()  # the states themselves are needed once more

    def backward(self, d: Tensor) -> Tensor | None:
        above = torch.zeros_like(self._tape[-1][2][0])
        above[-1] = d
        for weights, (below, zero, (states, hidden, cell, workspace)) in zip(
            reversed(self._layers()), reversed(self._tape), strict=True
        ):
            found = _aten.mkldnn_rnn_layer_backward.default(
                below, *weights, zero, zero, states, hidden, cell, above, None, None, False,
                _LSTM, self._width, 1, True, True, False, [], False, workspace,
            )  # fmt: skip
            above = found[0]
            torch._foreach_add_(weights, list(found[1:5]), alpha=-self._rate)
        self._tape = []
        return above.transpose(0, 1) if self._wanted else None

    def _layers(self) -> list[list[Tensor]]:
        return [self._weights[start : start + 4] for start in range(0, len(self._weights), 4)]

    def _kind(self) -> tuple[int, int, int, bool, bool]:
        return _LSTM, self._width, 1, True, False


def last_state(
    weights: Sequence[Tensor], rate: float, *, wanted: bool
) -> LastState | OneDnnLastState:
    """Returns the faster kernel where it can be had."""
    kernel = OneDnnLastState if has_onednn(weights[0]) else LastState
    return kernel(weights, rate, wanted=wanted)
