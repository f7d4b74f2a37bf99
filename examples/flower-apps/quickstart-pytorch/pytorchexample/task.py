"""The model, the data and the loops that both sides use."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 10


class Net(nn.Module):
    """A CNN of 3,610 parameters for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 2 * 2, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, 1, 8, 8) to logits (batch, 10)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


@lru_cache(maxsize=4)
def images(examples: int, seed: int = 7) -> TensorDataset:
    """Returns generated images: one pattern per class, blurred by noise."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(0).normal(size=(CLASSES, 1, 8, 8))
    labels = rng.integers(0, CLASSES, examples)
    noise = rng.normal(scale=1.0, size=(examples, 1, 8, 8))
    return TensorDataset(
        torch.from_numpy((patterns[labels] + noise).astype(np.float32)), torch.from_numpy(labels)
    )


def load_data(partition_id: int, num_partitions: int, examples: int) -> tuple:
    """Returns a node's share of the training images, cut 80:20 into training and validation."""
    share = torch.arange(partition_id, examples, num_partitions)
    x, y = images(examples)[share]
    cut = max(1, int(0.8 * len(share)))
    return TensorDataset(x[:cut], y[:cut]), TensorDataset(x[cut:], y[cut:])


def train(net: Net, data: TensorDataset, epochs: int, lr: float, loader: dict) -> float:
    """Trains in place with SGD; returns the mean loss of all batches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(epochs):
        for x, y in DataLoader(data, shuffle=True, **loader):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net: Net, data: TensorDataset) -> tuple[float, float]:
    """Returns loss and accuracy."""
    x, y = data.tensors
    if not len(y):
        return 0.0, 0.0
    logits = net(x)
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()
