"""Supervised local training: minimise a loss over labelled batches.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, Algorithm 1, ClientUpdate.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.func import functional_call

from shared_models.arrays import Arrays, add, roles_of, subtract, with_role
from shared_models.gradients import Gradient
from shared_models.noise import noise_of
from shared_models.objectives import Batch, Metrics, Noise, Objective, Sums
from shared_models.optimizers import Optimizer, OptimizerState
from shared_models.partial import ClientState
from shared_models.task import Task


class Local(NamedTuple):
    """A client in training: where it started, where it is."""

    start: Arrays
    params: Arrays
    buffers: Arrays
    optimizer: OptimizerState


def supervised(task: Task, optimizer: Optimizer, gradient: Gradient) -> Objective:
    """Returns the objective that trains `task` with `optimizer`; sums are `delta` and `stats`."""
    model = task.make_model().train()
    draw = noise_of(model)
    roles = roles_of(model)

    def loss_of(
        params: Arrays, buffers: Arrays, batch: Batch, noise: Noise
    ) -> tuple[Tensor, Arrays]:
        # BatchNorm writes its statistics in place: it gets its own copy, returned as a value.
        own = {name: tensor.clone() for name, tensor in buffers.items()}
        outputs = functional_call(model, {**params, **own, **noise}, (batch.x,))
        return task.loss(outputs, batch.y), own

    def begin(server: Arrays, _: ClientState, __: Batch) -> Local:
        params = with_role(server, roles, "trainable")
        buffers = {name: tensor for name, tensor in server.items() if name not in params}
        return Local(server, params, buffers, optimizer.init(params))

    def step(local: Local, batch: Batch, noise: Noise) -> tuple[Local, Metrics]:
        slope, loss, buffers = gradient(
            lambda params: loss_of(params, local.buffers, batch, noise), local.params
        )
        change, state = optimizer.update(slope, local.optimizer, local.params)
        return Local(local.start, add(local.params, change), buffers, state), {"loss": loss}

    def end(local: Local) -> tuple[Sums, ClientState, Metrics]:
        stats = with_role(local.buffers, roles, "averaged")
        return {"delta": subtract(local.params, local.start), "stats": stats}, {}, {}

    return Objective(begin, step, end, draw, descent=optimizer)
