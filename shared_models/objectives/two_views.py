"""What contrastive objectives share: two views of each example, and heads that are thrown away."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from shared_models.augmentations import augmentation_of
from shared_models.objectives import Batch, Noise, View
from shared_models.objectives.pretext import like, zeros
from shared_models.task import Task

PROJECTED = 64


def two_views(task: Task) -> View:
    """Returns what shows `2 n` examples for a batch of n: a view of each, then another of each."""
    augmentation = augmentation_of(task.input)

    def draw(generator: np.random.Generator, batch: Batch) -> Noise:
        return like(batch.x, augmentation.draw(generator, 2 * len(batch.x)))

    def show(batch: Batch, noise: Noise) -> Batch:
        return Batch(augmentation.apply(torch.cat([batch.x, batch.x]), noise), zeros(batch))

    return View(draw, show)


def bottleneck(inputs: int, width: int, outputs: int, norm: nn.Module) -> nn.Sequential:
    """Returns two dense layers with a normalisation and ReLU between."""
    return nn.Sequential(
        OrderedDict(
            dense1=nn.Linear(inputs, width), norm=norm, relu=nn.ReLU(),
            dense2=nn.Linear(width, outputs),
        )
    )  # fmt: skip
