"""One client after another, each layer's gradient fused into its update.

The same arithmetic as the plain loop for plain descent on cross-entropy, without a tape: see
`clients.kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.kernels.chain import Making, chain_of, columns_of, make_layers
from clients.kernels.layers import Layer
from clients.trainers.one_by_one import one_by_one
from clients.training import (
    BlockTrainer,
    Member,
    Trained,
    Training,
    Unfit,
    as_batch,
    batch_indices,
    order_of,
)
from shared_models.arrays import Arrays, in_dtype, to_device, with_role
from shared_models.gradients import by_autograd
from shared_models.objectives import Broadcast, Objective
from shared_models.task import as_labelled


def fused(training: Training) -> BlockTrainer:
    """Returns the trainer; `Unfit` unless the task is plain descent on a chain of known layers."""
    objective = training.objective(by_autograd)
    rate = plain_rate(training, objective)
    links = chain_of(training.task.make_model().train())
    weights = _weights(training)
    layers = make_layers(links, Making(weights, rate, training.compiled))
    columns = columns_of(links, torch.from_numpy(training.task.sample(1)))

    @torch.no_grad()
    def train(server: Broadcast, member: Member) -> Trained:
        start = with_role(server.params, training.roles, "trainable")
        torch._foreach_copy_(list(weights.values()), list(start.values()))
        loss = _descend(layers, training, member)
        torch._foreach_sub_(list(weights.values()), list(start.values()))  # now they are the delta
        return Trained({"delta": weights, "stats": {}}, {"loss": loss})

    return one_by_one(training, objective, train, columns)


def plain_rate(training: Training, objective: Objective) -> float:
    """Returns the learning rate; `Unfit` unless training is plain descent on cross-entropy."""
    if objective.descent is None:
        raise Unfit("its objective does more than descend on the task's loss")
    if objective.descent.plain_rate is None:
        raise Unfit("its local optimiser does more than step down the gradient")
    if training.task.loss is not cross_entropy or training.task.target is not as_labelled:
        raise Unfit("its loss is not the cross-entropy of its labels")
    if training.autocast is not None:
        raise Unfit("its kernels know no autocast")
    if any(role == "averaged" for role in training.roles.values()):
        raise Unfit("its model keeps running statistics")
    return objective.descent.plain_rate


def _weights(training: Training) -> Arrays:
    """Returns the arrays that hold the weights of the client in training."""
    arrays = with_role(training.task.build(0), training.roles, "trainable")
    return to_device(in_dtype(arrays, training.dtype), training.device)


def _descend(layers: Sequence[Layer], training: Training, member: Member) -> float:
    """Runs the local epochs in the layers' weights; returns the mean loss over examples."""
    x, y = as_batch(member.data, training)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    order = order_of(training, member.key)
    for index in batch_indices(len(y), training.epochs, training.batch_size, order):
        signal = x[index]
        for layer in layers:
            signal = layer.forward(signal)
        loss, gradient = cross_entropy_gradient(signal, y[index])
        total += loss
        for layer in reversed(layers):
            below = layer.backward(gradient)
            if below is None:
                break
            gradient = below
    return float(total) / (training.epochs * len(y))


def cross_entropy_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the summed loss over the batch, and the gradient of its mean by the logits."""
    log_p = torch.log_softmax(logits, dim=1)
    index = labels.unsqueeze(1)
    loss = -log_p.gather(1, index).sum()
    gradient = log_p.exp_()
    gradient.scatter_add_(1, index, gradient.new_full((), -1.0).expand_as(index))
    return loss, gradient.div_(len(labels))
