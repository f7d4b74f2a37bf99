"""SimCLR: two views of one example are alike, those of others are not.

Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020,
equation 1 and algorithm 1: with z_i the projections of the 2 n views of a batch, s their cosine
similarity and j the other view of i's example

    loss = mean_i -log (exp(s_ij / T) / sum_{k != i} exp(s_ik / T))

A client's negatives are its own: a batch is as large as a client has examples, at most. What is
passed on is the encoder, not the projector (section 4.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from shared_models.models.parts import features_of, with_parts
from shared_models.objectives.pretext import Loss, with_pretext
from shared_models.objectives.two_views import PROJECTED, bottleneck, two_views
from shared_models.task import Task


def simclr(task: Task, temperature: float) -> Task:
    """Returns the task of telling which views are of one example; `temperature` is T."""
    view = two_views(task)
    features = features_of(task.make_model)

    def make_parts() -> dict[str, nn.Module]:
        return {"projector": bottleneck(features, features, PROJECTED, nn.Identity())}

    def use(model: Any, features: Tensor) -> Tensor:
        projected: Tensor = model.projector(features)
        return projected

    made = with_parts(task.make_model, make_parts, use)
    return with_pretext(task, made, view, contrast(temperature))


def contrast(temperature: float) -> Loss:
    """Returns the paper's loss of projections `(2 n, width)`, the second view n after the first."""

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        z = normalize(outputs, dim=1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        alike = (z @ z.transpose(0, 1) / temperature).masked_fill(itself, float("-inf"))
        partners = torch.arange(len(z), device=z.device).roll(len(z) // 2)
        return cross_entropy(alike, partners)

    return loss
