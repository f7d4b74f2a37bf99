"""Layers of feed-forward networks: forward, and a backward pass that steps the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clients.kernels.layout import channels_last
from clients.kernels.products import times

_aten = torch.ops.aten
_SMALL_PATCH = 64


class Layer(Protocol):
    """One layer with weights that are views into its client's vector; it remembers one batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output."""

    def backward(self, d: Tensor) -> Tensor | None:
        """Takes the loss's gradient by the output, steps the weights, returns that by the input.

        None where nobody needs it, in front of the first weights.
        """


class Dense:
    """`y = x W.T + b`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rate: float, *, wanted: bool) -> None:
        self._weight, self._bias, self._rate, self._wanted = weight, bias, rate, wanted
        self._x = weight

    def forward(self, x: Tensor) -> Tensor:
        self._x = x
        return times(x, self._weight, self._bias)

    def backward(self, d: Tensor) -> Tensor | None:
        before = times(d, self._weight.t()) if self._wanted else None
        self._weight.addmm_(d.t(), self._x, alpha=-self._rate)
        if self._bias is not None:
            self._bias.sub_(d.sum(0), alpha=self._rate)
        return before


class Relu:
    """`y = max(x, 0)`, in place: the layer before it has no use for its output."""

    def __init__(self) -> None:
        self._y = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self._y = x.relu_()
        return self._y

    def backward(self, d: Tensor) -> Tensor:
        before: Tensor = _aten.threshold_backward.default(d, self._y, 0)
        return before


class Flatten:
    """Examples to vectors, as they lie in memory: images `(n, c, h, w)` to `(n, h * w * c)`."""

    def __init__(self) -> None:
        self._shape = torch.Size()

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
        self._shape = x.shape
        return x.flatten(1)

    def backward(self, d: Tensor) -> Tensor:
        before = d.view(self._shape)
        return before.permute(0, 3, 1, 2) if before.ndim == 4 else before


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its image, as torch's functions take it."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the convolution of `x`, channels last."""
        return torch.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Convolution:
    """`torch.nn.Conv2d`, with channels last in memory."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, geometry: Geometry, rate: float, *, wanted: bool
    ) -> None:
        self._weight, self._bias, self._geometry, self._rate = weight, bias, geometry, rate
        self._mask = [wanted, True, bias is not None]
        self._x = weight

    def forward(self, x: Tensor) -> Tensor:
        self._x = channels_last(x)
        return self._geometry.apply(self._x, self._weight, self._bias)

    def backward(self, d: Tensor) -> Tensor | None:
        own = self._geometry
        before, weight, bias = _aten.convolution_backward.default(
            d,
            self._x,
            self._weight,
            None if self._bias is None else [len(self._bias)],
            own.stride,
            own.padding,
            own.dilation,
            False,
            [0, 0],
            own.groups,
            self._mask,
        )
        self._weight.sub_(weight, alpha=self._rate)
        if self._bias is not None:
            self._bias.sub_(bias, alpha=self._rate)
        return before if self._mask[0] else None


class FirstConvolution:
    """A convolution in front of all others, on images of few channels.

    Nobody wants the gradient by its input, and that by its weights is one product with the input's
    patches, in a third of the time that oneDNN's general kernel takes.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, geometry: Geometry, rate: float
    ) -> None:
        self._weight, self._bias, self._geometry, self._rate = weight, bias, geometry, rate
        self._x = weight

    @staticmethod
    def fits(weight: Tensor, geometry: Geometry) -> bool:
        """Whether patches are small, and cover neither holes nor groups."""
        plain = geometry.groups == 1 and set(geometry.dilation) == {1}
        return plain and weight[0].numel() <= _SMALL_PATCH

    def forward(self, x: Tensor) -> Tensor:
        self._x = x
        return self._geometry.apply(channels_last(x), self._weight, self._bias)

    def backward(self, d: Tensor) -> None:
        slopes = d.permute(0, 2, 3, 1).flatten(0, 2)
        by_weight = times(self._patches(d.shape[2:]), slopes.t())
        self._weight.view(len(self._weight), -1).sub_(by_weight.t(), alpha=self._rate)
        if self._bias is not None:
            self._bias.sub_(slopes.sum(0), alpha=self._rate)

    def _patches(self, places: torch.Size) -> Tensor:
        """Returns what each weight has seen: `(channels * kernel, examples * places)`."""
        (top, left), (down, right) = self._geometry.padding, self._geometry.stride
        x = torch.nn.functional.pad(self._x, (left, left, top, top)).contiguous()
        n, c, h, w = x.shape
        _, _, kh, kw = self._weight.shape
        seen = x.as_strided((c, kh, kw, n, *places), (h * w, w, 1, c * h * w, w * down, right))
        return seen.reshape(c * kh * kw, -1)


class MaxPool:
    """`torch.nn.MaxPool2d`."""

    def __init__(self, kernel: list[int], stride: list[int], padding: list[int]) -> None:
        self._window = (kernel, stride, padding, [1, 1], False)
        self._x = self._index = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self._x = x
        y, self._index = _aten.max_pool2d_with_indices.default(x, *self._window)
        pooled: Tensor = y
        return pooled

    def backward(self, d: Tensor) -> Tensor:
        before: Tensor = _aten.max_pool2d_with_indices_backward.default(
            d, self._x, *self._window, self._index
        )
        return before


class Embedding:
    """Rows of a table `(tokens, width)`; always the first layer."""

    def __init__(self, table: Tensor, rate: float) -> None:
        self._table, self._rate = table, rate
        self._tokens = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self._tokens = x
        return torch.embedding(self._table, x)

    def backward(self, d: Tensor) -> None:
        tokens = self._tokens.reshape(-1)
        self._table.index_add_(0, tokens, d.reshape(len(tokens), -1), alpha=-self._rate)
