"""Masked reconstruction: what is hidden is told from what is not.

Haresamudram et al., "Masked reconstruction based self-supervision for human activity recognition",
ISWC 2020, section 3: time steps are set to zero, the loss is the squared error on these alone. They
hide single steps at random, which neighbours tell; here spans of steps are hidden, and of images
square patches (He et al., "Masked autoencoders are scalable vision learners", CVPR 2022).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared_models.objectives import Batch, Noise, View
from shared_models.objectives.pretext import like, require_numbers, with_pretext
from shared_models.objectives.reconstruction import autoencoder
from shared_models.task import Task

_PATCH, _SPAN = 4, 10


def masked(task: Task, fraction: float) -> Task:
    """Returns the task of telling what is hidden; `fraction` of the patches or spans are."""
    require_numbers(task, "masked_reconstruction")

    def draw(generator: np.random.Generator, batch: Batch) -> Noise:
        hidden = torch.from_numpy(_hidden(generator, tuple(batch.x.shape), fraction))
        return like(batch.x, {"hidden": hidden.expand(batch.x.shape)})

    return with_pretext(task, autoencoder(task), View(draw, _show), _loss)


def _hidden(
    generator: np.random.Generator, shape: tuple[int, ...], fraction: float
) -> NDArray[np.bool_]:
    """Returns what is hidden: `(n, 1, h, w)` for images, `(n, time, 1)` for windows."""
    if len(shape) == 4:
        _, _, height, width = shape
        cells = (math.ceil(height / _PATCH), math.ceil(width / _PATCH))
        coarse = generator.random((shape[0], 1, *cells)) < fraction
        return np.kron(coarse, np.ones((1, 1, _PATCH, _PATCH), bool))[:, :, :height, :width]
    spans = generator.random((shape[0], math.ceil(shape[1] / _SPAN), 1)) < fraction
    return np.repeat(spans, _SPAN, axis=1)[:, : shape[1]]


def _show(batch: Batch, noise: Noise) -> Batch:
    hidden = noise["hidden"]
    return Batch(batch.x * (1 - hidden), torch.stack([batch.x, hidden], dim=1))


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared error over what is hidden; `targets` are the input and the mask."""
    whole, hidden = targets.unbind(1)
    return ((outputs - whole) ** 2 * hidden).sum() / hidden.sum().clamp(min=1.0)
