"""Matrix products by the faster of torch's two libraries."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_LARGE = 500_000  # multiplications


def has_onednn(tensor: Tensor) -> bool:
    """Whether torch can use oneDNN's kernels on a tensor: float32 on a CPU."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and _is_built_in()


@functools.cache
def _is_built_in() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns `x @ weight.T + bias` for `x (n, in)`, `weight (out, in)`.

    `torch.mm` calls MKL on a CPU. oneDNN, which torch reserves for convolutions, is up to twice as
    fast in float32: it generates code for the shape at hand, and uses AVX-512 on every maker's CPU.
    A call costs 15 us, though, so that small products are better off with MKL.
    """
    if x.shape[0] * weight.numel() >= _LARGE and has_onednn(x):
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, weight, bias, "none", [], ""
        )
        return product
    return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
