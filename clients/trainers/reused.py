"""One client after another in one module that is never made anew.

What the plain loop computes, for any model and optimiser, without its copies: the weights of the
module are written in place, and steps are taken on all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from clients.kernels.layout import channels_last
from clients.trainers.one_by_one import one_by_one
from clients.training import (
    BlockTrainer,
    Member,
    Trained,
    Training,
    Unfit,
    as_batch,
    batch_indices,
    noise_source,
    order_of,
)
from shared_models.arrays import Arrays, with_role
from shared_models.gradients import by_autograd
from shared_models.objectives import Batch, Broadcast, Noise
from shared_models.optimizers import Optimizer

Step: TypeAlias = Callable[[Batch, Noise], Tensor]


def reused(training: Training) -> BlockTrainer:
    """Returns the trainer; `Unfit` unless the objective only descends on the task's loss."""
    objective = training.objective(by_autograd)
    optimizer = objective.descent
    if optimizer is None:
        raise Unfit("its objective does more than descend on the task's loss")
    model = training.task.make_model().train().to(training.device, training.dtype)
    state = model.state_dict()  # views: they change with the model

    def train(server: Broadcast, member: Member) -> Trained:
        start = server.params
        with torch.no_grad():
            torch._foreach_copy_(list(state.values()), [start[name] for name in state])
        draw = noise_source(training, objective, member.key)
        loss = _descend(training, _stepper(training, model, optimizer), draw, member)
        delta = with_role(state, training.roles, "trainable")
        # Now the model holds the delta; the next client's weights overwrite it.
        torch._foreach_sub_(list(delta.values()), [start[name] for name in delta])
        stats = with_role(state, training.roles, "averaged")
        return Trained({"delta": delta, "stats": stats}, {"loss": loss})

    return one_by_one(training, objective, train)


def _stepper(training: Training, model: nn.Module, optimizer: Optimizer) -> Step:
    """Returns one client's step, which changes the model and returns the batch's mean loss."""
    names, weights = zip(*model.named_parameters(), strict=True)
    state = optimizer.init({n: weight.detach() for n, weight in model.named_parameters()})
    lower = torch.autocast(
        training.device.type, training.autocast, enabled=training.autocast is not None
    )

    def named(tensors: Iterable[Tensor]) -> Arrays:
        return dict(zip(names, tensors, strict=True))

    def step(batch: Batch, noise: Noise) -> Tensor:
        nonlocal state
        for name, tensor in noise.items():
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, tensor)
        x = channels_last(batch.x) if batch.x.ndim == 4 else batch.x
        with lower:
            loss = training.task.loss(model(x), training.task.target(batch.x, batch.y))
        slope = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            if optimizer.plain_rate is not None:
                torch._foreach_add_(weights, slope, alpha=-optimizer.plain_rate)
            else:
                change, state = optimizer.update(named(slope), state, named(weights))
                torch._foreach_add_(weights, [change[name] for name in names])
        return loss.detach()

    return step


def _descend(
    training: Training, step: Step, draw: Callable[[Batch], Noise], member: Member
) -> float:
    """Runs one client's local epochs; returns the mean loss over examples."""
    x, y = as_batch(member.data, training)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    order = order_of(training, member.key)
    for index in batch_indices(len(y), training.epochs, training.batch_size, order):
        batch = Batch(x[index], y[index])
        total += step(batch, draw(batch)) * len(index)
    return float(total) / (training.epochs * len(y))
