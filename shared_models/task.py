"""A task: everything that trainer, server and exporter need to know of a problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from shared_models.arrays import Arrays
from shared_models.inputs import InputSpec
from shared_models.objectives import Ground, Objective


@dataclass(frozen=True)
class Task:
    """Model, objective, metrics, data and sample input of one problem.

    * `make_model()`: a new, randomly initialised module; parameter names are `<part>.<rest>`.
    * `objective(ground)`: what a client minimises.
    * `loss(outputs, targets)`: the mean over the batch, a scalar.
    * `metrics(outputs, targets)`: per-example values by name, each of shape `(n,)`; the first name
      is the one that gates and reports look at.
    * `labels`: what each output index means.
    """

    name: str
    dataset: str
    input: InputSpec
    labels: tuple[str, ...]
    make_model: Callable[[], nn.Module]
    objective: Callable[[Ground], Objective]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Callable[[Tensor, Tensor], dict[str, Tensor]]

    def build(self, seed: int) -> Arrays:
        """Returns the initial arrays, a pure function of `seed`."""
        return {name: tensor.clone() for name, tensor in self.model(seed).state_dict().items()}

    def model(self, seed: int = 0) -> nn.Module:
        """Returns the module with the weights of `build(seed)`."""
        # torch initialises from its global generator only; the fork puts it back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.make_model()

    def apply(self, model: nn.Module, arrays: Arrays, x: Tensor) -> Tensor:
        """Returns the outputs of `model` with `arrays` as its weights."""
        outputs: Tensor = functional_call(model, arrays, (x,))
        return outputs

    def measures(self) -> tuple[str, ...]:
        """Returns the names of what an evaluation tells: the task's metrics, then the loss."""
        with torch.no_grad():
            outputs = self.model().eval()(torch.from_numpy(self.sample(1)))
        found = self.metrics(outputs, torch.zeros(1, dtype=torch.int64))
        return (*found, "loss")

    def sample(self, examples: int = 2) -> NDArray[Any]:
        """Returns model input of the right shape and dtype, for tracing: zeros."""
        return np.zeros((examples, *self.input.shape), self.input.dtype)


def parameter_count(task: Task) -> int:
    """Returns the number of trainable parameters, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in task.make_model().parameters())
