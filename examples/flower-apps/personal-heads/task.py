"""The model and the data: points whose labels each node names in its own way."""

import numpy as np
import torch
from torch import nn

FEATURES, HIDDEN, CLASSES = 12, 16, 4


def encoder() -> nn.Sequential:
    """Returns the part that all nodes share."""
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh())


def head() -> nn.Linear:
    """Returns the part that stays with a node."""
    return nn.Linear(HIDDEN, CLASSES)


def load_data(partition_id: int, examples: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a node's points; its labels are shuffled by a permutation of its own."""
    rng = np.random.default_rng(partition_id)
    centres = np.random.default_rng(0).normal(scale=2.0, size=(CLASSES, FEATURES))
    labels = rng.integers(0, CLASSES, examples + partition_id % 7)
    points = centres[labels] + rng.normal(size=(len(labels), FEATURES))
    own_names = rng.permutation(CLASSES)
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(own_names[labels])
