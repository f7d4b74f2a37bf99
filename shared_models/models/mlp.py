"""Multi-layer perceptrons."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class Mlp(nn.Module):
    """Two hidden layers of equal width over flattened input; 784-200-200-10 is McMahan's 2NN."""

    def __init__(self, inputs: int = 784, width: int = 200, classes: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                dense1=nn.Linear(inputs, width),
                relu1=nn.ReLU(),
                dense2=nn.Linear(width, width),
                relu2=nn.ReLU(),
            )
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits `(n, classes)`."""
        logits: Tensor = self.head(self.encoder(x))
        return logits
