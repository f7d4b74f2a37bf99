"""Denoising autoencoder: the input is found again from a part of it.

Vincent et al., "Extracting and composing robust features with denoising autoencoders", ICML 2008,
section 2.3: a share of the values, drawn anew each time, is set to zero; the decoder's output is
compared with all of the whole input. Here by the mean squared error for any input (the paper has
cross-entropy, its values being bits), and with convolutions or an LSTM in place of dense layers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from shared_models.objectives import Batch, Noise, View
from shared_models.objectives.pretext import like, require_numbers, with_pretext
from shared_models.objectives.reconstruction import autoencoder
from shared_models.task import Task


def denoising(task: Task, corrupted: float) -> Task:
    """Returns the task of finding whole examples again; `corrupted` is the paper's nu."""
    require_numbers(task, "denoising_autoencoder")

    def draw(generator: np.random.Generator, batch: Batch) -> Noise:
        kept = torch.from_numpy(generator.random(tuple(batch.x.shape)) >= corrupted)
        return like(batch.x, {"kept": kept})

    return with_pretext(task, autoencoder(task), View(draw, _show), _loss)


def _show(batch: Batch, noise: Noise) -> Batch:
    return Batch(batch.x * noise["kept"], batch.x)


def _loss(outputs: Tensor, whole: Tensor) -> Tensor:
    return mse_loss(outputs, whole)
