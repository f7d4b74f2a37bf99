"""A small one-stage detector: one box and one score for each cell of a grid over the image.

Redmon et al., "You only look once: unified, real-time object detection", CVPR 2016, section 2,
reduced to one class and one box a cell; sizes are logarithms relative to a usual box, as in Redmon,
Farhadi, "YOLO9000: better, faster, stronger", CVPR 2017, section 2. What the numbers mean is in
`shared_models.boxes`, which a device can use without torch.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from shared_models.boxes import NUMBERS

_RARE = -2.0  # the logit that a cell begins with: most hold nothing


def _layer(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            norm=nn.BatchNorm2d(width),
            relu=nn.ReLU(),
        )
    )


class Detector(nn.Module):
    """Finds things of one kind in images `(n, channels, h, w)`, in cells of 8x8 pixels."""

    def __init__(self, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            OrderedDict(
                layer1=_layer(channels, width, stride=2),
                layer2=_layer(width, 2 * width, stride=2),
                layer3=_layer(2 * width, 4 * width, stride=2),
                layer4=_layer(4 * width, 4 * width, stride=1),
                layer5=_layer(4 * width, 4 * width, stride=1),
            )
        )
        self.head = nn.Conv2d(4 * width, NUMBERS, kernel_size=1)
        with torch.no_grad():
            self.head.bias[0] = _RARE  # type: ignore[index]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        """Returns five numbers a cell: `(n, 5, h / 8, w / 8)`."""
        numbers: Tensor = self.head(self.encoder(x))
        return numbers
