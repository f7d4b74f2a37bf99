"""U-Net: an encoder, a decoder, and bridges between layers of the same size.

Ronneberger, Fischer, Brox, "U-Net: convolutional networks for biomedical image segmentation",
MICCAI 2015, figure 1. Three departures: convolutions are padded, so that a mask is as large as its
image; each is followed by batch normalisation, as has become usual; on the way up pixels are
repeated before a convolution instead of a transposed convolution, which not every converter knows.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


def _block(channels: int, width: int) -> nn.Sequential:
    """Returns two 3x3 convolutions, each normalised and rectified."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            norm1=nn.BatchNorm2d(width),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(width),
            relu2=nn.ReLU(),
        )
    )


class Down(nn.Module):
    """The way down: blocks of `width`, `2 width`, ..., each after a pooling by 2 but the first."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [channels, *(width * 2**level for level in range(depth + 1))]
        self.blocks = nn.ModuleList(
            _block(widths[level], widths[level + 1]) for level in range(depth + 1)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns what each block says, from the largest to the smallest."""
        seen: list[Tensor] = []
        for block in self.blocks:
            seen.append(block(self.pool(seen[-1]) if seen else x))
        return seen


class Up(nn.Module):
    """The way up: pixels doubled, a 3x3 convolution, the bridge beside it, a block."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in reversed(range(depth))]
        self.enlarge = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.narrow = nn.ModuleList(nn.Conv2d(2 * own, own, 3, padding=1) for own in widths)
        self.blocks = nn.ModuleList(_block(2 * own, own) for own in widths)

    def forward(self, seen: list[Tensor]) -> Tensor:
        """Returns features of the size of the image, `(n, width, h, w)`."""
        *bridges, x = seen
        for narrow, block, bridge in zip(self.narrow, self.blocks, reversed(bridges), strict=True):
            x = block(torch.cat([bridge, narrow(self.enlarge(x))], dim=1))
        return x


class UNet(nn.Module):
    """Tells the foreground of images `(n, channels, h, w)`; sides are multiples of `2^depth`."""

    def __init__(self, channels: int = 1, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.encoder = Down(channels, width, depth)
        self.decoder = Up(width, depth)
        self.head = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a score per pixel, above 0 where the foreground is: `(n, 1, h, w)`."""
        scores: Tensor = self.head(self.decoder(self.encoder(x)))
        return scores
