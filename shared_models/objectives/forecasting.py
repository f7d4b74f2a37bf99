"""Forecasting: from a window's past, its last readings.

Srivastava et al., "Unsupervised learning of video representations using LSTMs", ICML 2015, section
2.2, the future predictor, for readings of sensors; here a dense layer tells all steps at once, so
that what is learnt is the encoder's. The past is moved to the end of the window, zeros come before
it: any encoder then has an input of the length that it knows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from shared_models.errors import InputError
from shared_models.models.parts import features_of, with_parts
from shared_models.objectives import Batch, Noise, View
from shared_models.objectives.pretext import with_pretext
from shared_models.task import Task


def forecasting(task: Task, steps: int) -> Task:
    """Returns the task of telling the last `steps` readings of a window from those before."""
    if task.input.dtype != "float32" or len(task.input.shape) != 2:
        raise InputError(f"objective: 'forecasting' is for windows of sensors, not {task.name!r}")
    time, channels = task.input.shape
    if steps >= time:
        raise InputError(f"forecast_steps: {steps} of a window of {time} leave no past")
    features = features_of(task.make_model)

    def make_parts() -> dict[str, nn.Module]:
        return {"decoder": nn.Linear(features, steps * channels)}

    def use(model: Any, features: Tensor) -> Tensor:
        return torch.unflatten(model.decoder(features), 1, (steps, channels))

    def show(batch: Batch, _: Noise) -> Batch:
        past, future = batch.x[:, :-steps], batch.x[:, -steps:]
        return Batch(torch.cat([torch.zeros_like(future), past], dim=1), future)

    return with_pretext(
        task, with_parts(task.make_model, make_parts, use), View(_draw, show), _loss
    )


def _draw(_: np.random.Generator, __: Batch) -> Noise:
    return {}


def _loss(outputs: Tensor, future: Tensor) -> Tensor:
    return mse_loss(outputs, future)
