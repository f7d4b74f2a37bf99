"""SimSiam: each view's prediction meets the other view's projection; nothing is pushed apart.

Chen and He, "Exploring simple Siamese representation learning", CVPR 2021, algorithm 1:

    loss = D(p_1, z_2) / 2 + D(p_2, z_1) / 2,    D(p, z) = -cos(p, stopgrad(z))

with z the projection and p the prediction from it. It is BYOL (Grill et al., NeurIPS 2020) without
the slowly moving copy. Without the normalisation over the batch inside it collapses (section 4.4);
this one keeps no running statistics, so that nothing but weights leaves a client.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from shared_models.models.parts import features_of, with_parts
from shared_models.objectives.pretext import with_pretext
from shared_models.objectives.two_views import PROJECTED, bottleneck, two_views
from shared_models.task import Task


def simsiam(task: Task) -> Task:
    """Returns the task of predicting one view's projection from the other's."""
    view = two_views(task)
    features = features_of(task.make_model)

    def make_parts() -> dict[str, nn.Module]:
        return {
            "projector": nn.Sequential(
                bottleneck(features, PROJECTED, PROJECTED, _over_batch(PROJECTED)),
                _over_batch(PROJECTED),
            ),
            "predictor": bottleneck(
                PROJECTED, PROJECTED // 4, PROJECTED, _over_batch(PROJECTED // 4)
            ),
        }

    def use(model: Any, features: Tensor) -> Tensor:
        projected = model.projector(features)
        return torch.stack([projected, model.predictor(projected)], dim=1)

    return with_pretext(task, with_parts(task.make_model, make_parts, use), view, _loss)


def _over_batch(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, affine=False, track_running_stats=False)


def _loss(outputs: Tensor, _: Tensor) -> Tensor:
    """Returns the loss of `(2 n, 2, width)`: projections and predictions of both views."""
    projected, predicted = outputs.unbind(1)
    others = projected.detach().roll(len(projected) // 2, 0)
    return -cosine_similarity(predicted, others, dim=1).mean()
