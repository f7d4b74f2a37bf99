"""FedAvg as one would write it on a blackboard: the oracle for everything faster or safer."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared_models.objectives import Batch
from shared_models.task import Task


def train_locally(
    task: Task, model: nn.Module, batches: Sequence[Batch], learning_rate: float
) -> nn.Module:
    """Plain SGD on a copy of the model with torch's own optimiser."""
    local = copy.deepcopy(model)
    optimizer = torch.optim.SGD(local.parameters(), lr=learning_rate)
    for batch in batches:
        optimizer.zero_grad()
        task.loss(local(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return local


def weighted_average(models: Sequence[nn.Module], weights: Sequence[int]) -> dict[str, Tensor]:
    """McMahan et al. 2017, Algorithm 1: `sum_k n_k / n * w_k`."""
    total = sum(weights)
    states = [model.state_dict() for model in models]
    return {
        name: sum((s[name] * w for s, w in zip(states, weights, strict=True)), torch.tensor(0.0))
        / total
        for name in states[0]
    }
