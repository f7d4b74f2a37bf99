"""Convolutions over time: for sensors on devices whose kernels are int8 throughout."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class SensorCnn(nn.Module):
    """Classifies windows of sensor readings `(n, time, channels)` by convolutions over time."""

    def __init__(self, channels: int, time: int, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv1d(channels, 32, kernel_size=5, padding=2),
                conv1_relu=nn.ReLU(),
                pool1=nn.MaxPool1d(2),
                conv2=nn.Conv1d(32, 32, kernel_size=5, padding=2),
                conv2_relu=nn.ReLU(),
                pool2=nn.MaxPool1d(2),
                flatten=nn.Flatten(),
                dense=nn.Linear(time // 4 * 32, 64),
                dense_relu=nn.ReLU(),
            )
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits `(n, classes)`."""
        logits: Tensor = self.head(self.encoder(x.transpose(1, 2)))
        return logits
