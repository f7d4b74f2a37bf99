"""A client's way through its batches: what all supervised objectives share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.func import functional_call

from shared_models.arrays import Arrays, add, subtract, with_role
from shared_models.noise import noise_of
from shared_models.objectives import (
    Batch,
    Broadcast,
    Ground,
    Metrics,
    Noise,
    Objective,
    Sums,
)
from shared_models.optimizers import OptimizerState
from shared_models.partial import ClientState

Correct: TypeAlias = Callable[[Arrays, Arrays], Arrays]
"""`correct(gradient, params) -> gradient`: what an objective adds to the gradient of the loss."""


class Local(NamedTuple):
    """A client in training: where it started, where it is, how many steps it has taken."""

    start: Arrays
    params: Arrays
    buffers: Arrays
    optimizer: OptimizerState
    steps: Tensor

    @property
    def arrays(self) -> Arrays:
        """The model where it is: what is trained and what is not."""
        return {**self.params, **self.buffers}


def as_it_is(gradient: Arrays, _: Arrays) -> Arrays:
    """Corrects nothing."""
    return gradient


class LocalTraining:
    """Steps of an optimiser down the task's loss, by the role of each array.

    Trainable arrays move and go up as `delta`, averaged ones go up as `stats`; personal arrays take
    the same steps, but stay with the client as its state `personal`.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._model = ground.task.make_model().train()
        still = {name for name, role in ground.roles.items() if role == "carried"}
        own = [name for name, _ in self._model.named_parameters()]
        self._parameters = tuple(name for name in own if name not in still)
        self.freezes = len(self._parameters) < len(own)
        _quiet(self._model, still)
        self._personal = "personal" in ground.roles.values()

    def objective(self) -> Objective:
        """Returns the objective that takes these steps and nothing else, for others to vary."""
        plain = Objective(self.begin, self.step, self.end, noise_of(self._model))
        if not self._personal:
            return plain
        return replace(plain, init_state=self._kept, own_model=_own_arrays)

    def begin(self, server: Broadcast, state: ClientState, _: Batch) -> Local:
        """Returns a client at the server's weights, its personal arrays at its own."""
        arrays = _own_arrays(server.params, state) if self._personal else server.params
        return self.start(arrays)

    def start(self, arrays: Arrays) -> Local:
        """Returns a client that has taken no step from these arrays."""
        # In the model's order, whatever order they came in: a norm over all adds up in it.
        params = {name: arrays[name] for name in self._parameters}
        buffers = {name: tensor for name, tensor in arrays.items() if name not in params}
        none_yet = next(iter(params.values())).new_zeros(())
        return Local(arrays, params, buffers, self._ground.optimizer.init(params), none_yet)

    def outputs(self, local: Local, x: Tensor, noise: Noise) -> Tensor:
        """Returns what a client's model makes of examples; statistics stay as they are."""
        own = {name: tensor.clone() for name, tensor in local.buffers.items()}
        found: Tensor = functional_call(self._model, {**local.params, **own, **noise}, (x,))
        return found

    def step(
        self, local: Local, batch: Batch, noise: Noise, correct: Correct = as_it_is
    ) -> tuple[Local, Metrics]:
        """Takes one step; the metric is the loss, the mean over the batch."""
        targets = self._ground.task.target(batch.x, batch.y)

        def loss_of(params: Arrays) -> tuple[Tensor, Arrays]:
            # BatchNorm writes its statistics in place: it gets its own copy, returned as a value.
            own = {name: tensor.clone() for name, tensor in local.buffers.items()}
            outputs = functional_call(self._model, {**params, **own, **noise}, (batch.x,))
            return self._ground.task.loss(outputs, targets), own

        slope, loss, buffers = self._ground.gradient(loss_of, local.params)
        slope = correct(slope, local.params)
        change, state = self._ground.optimizer.update(slope, local.optimizer, local.params)
        params = add(local.params, change)
        return Local(local.start, params, buffers, state, local.steps + 1), {"loss": loss}

    def end(self, local: Local) -> tuple[Sums, ClientState, Metrics]:
        """Returns the standard sums, and the personal arrays as state where there are some."""
        stats = with_role(local.buffers, self._ground.roles, "averaged")
        sums = {"delta": subtract(self.shared(local.params), local.start), "stats": stats}
        return sums, self._kept(local.arrays) if self._personal else {}, {}

    def shared(self, arrays: Arrays) -> Arrays:
        """Returns the trainable ones: what clients learn together."""
        return with_role(arrays, self._ground.roles, "trainable")

    def _kept(self, arrays: Arrays) -> ClientState:
        return {"personal": with_role(arrays, self._ground.roles, "personal")}


def _quiet(model: nn.Module, still: set[str]) -> None:
    """Puts the parts whose arrays are all frozen into evaluation: no statistics, no dropout."""
    for part, module in model.named_modules():
        names = [f"{part}.{name}" if part else name for name in module.state_dict()]
        if names and still.issuperset(names):
            module.eval()


def _own_arrays(params: Arrays, state: ClientState) -> Arrays:
    return {**params, **state["personal"]}
