"""A client's way through its batches: what all supervised objectives share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.func import functional_call

from shared_models.arrays import Arrays, add, subtract, with_role
from shared_models.objectives import Batch, Ground, Noise, Sums
from shared_models.optimizers import OptimizerState
from shared_models.partial import ClientState

Correct: TypeAlias = Callable[[Arrays, Arrays], Arrays]
"""`correct(gradient, params) -> gradient`: what an objective adds to the gradient of the loss."""


class Local(NamedTuple):
    """A client in training: where it started, where it is."""

    start: Arrays
    params: Arrays
    buffers: Arrays
    optimizer: OptimizerState


def as_it_is(gradient: Arrays, _: Arrays) -> Arrays:
    """Corrects nothing."""
    return gradient


class LocalTraining:
    """Steps of an optimiser down the task's loss; personal arrays take them, but stay."""

    def __init__(self, ground: Ground, model: nn.Module) -> None:
        self._ground = ground
        self._model = model
        self._parameters = {name for name, _ in model.named_parameters()}

    def begin(self, arrays: Arrays) -> Local:
        """Returns where a client starts that has these arrays."""
        params = {name: arrays[name] for name in arrays if name in self._parameters}
        buffers = {name: tensor for name, tensor in arrays.items() if name not in params}
        return Local(arrays, params, buffers, self._ground.optimizer.init(params))

    def step(
        self, local: Local, batch: Batch, noise: Noise, correct: Correct = as_it_is
    ) -> tuple[Local, Tensor]:
        """Takes one step; returns also the loss, the mean over the batch."""

        def loss_of(params: Arrays) -> tuple[Tensor, Arrays]:
            # BatchNorm writes its statistics in place: it gets its own copy, returned as a value.
            own = {name: tensor.clone() for name, tensor in local.buffers.items()}
            outputs = functional_call(self._model, {**params, **own, **noise}, (batch.x,))
            return self._ground.task.loss(outputs, batch.y), own

        slope, loss, buffers = self._ground.gradient(loss_of, local.params)
        slope = correct(slope, local.params)
        change, state = self._ground.optimizer.update(slope, local.optimizer, local.params)
        return Local(local.start, add(local.params, change), buffers, state), loss

    def sums(self, local: Local) -> Sums:
        """Returns the standard sums: `delta` and `stats`."""
        roles = self._ground.roles
        trained = with_role(local.params, roles, "trainable")
        stats = with_role(local.buffers, roles, "averaged")
        return {"delta": subtract(trained, local.start), "stats": stats}

    def kept(self, local: Local) -> ClientState:
        """Returns the client's personal arrays as its state."""
        return personal_state(self._ground, {**local.params, **local.buffers})


def personal_state(ground: Ground, arrays: Mapping[str, Tensor]) -> ClientState:
    """Returns the personal ones among the arrays as a client's state."""
    return {"personal": with_role(arrays, ground.roles, "personal")}


def own_arrays(params: Arrays, state: ClientState) -> Arrays:
    """Returns the server's arrays with the client's personal ones in their place."""
    return {**params, **state["personal"]}
