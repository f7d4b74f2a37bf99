"""A task: everything that trainer, server and exporter need to know of a problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from shared_models.answers import Answer
from shared_models.arrays import Arrays
from shared_models.inputs import InputSpec
from shared_models.measures import Pooled
from shared_models.objectives import Ground, Objective, View


def as_labelled(_: Tensor, y: Tensor) -> Tensor:
    """Returns the labels: what a supervised model's outputs are compared with."""
    return y


def as_given(x: Tensor, _: Tensor) -> Tensor:
    """Returns the input: what an autoencoder's outputs are compared with."""
    return x


@dataclass(frozen=True)
class Deployed:
    """The part of a model that goes to devices, where that is not the whole.

    * `part`: the submodule's name; `input`: what it takes.
    * `draw(generator, n)`: n raw examples of that, to calibrate and to compare with: the dataset
      has none.
    """

    part: str
    input: InputSpec
    draw: Callable[[np.random.Generator, int], NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """Model, objective, metrics, data and sample input of one problem.

    * `make_model()`: a new, randomly initialised module; parameter names are `<part>.<rest>`.
    * `objective(ground)`: what a client minimises.
    * `loss(outputs, targets)`: the mean over the batch, a scalar.
    * `metrics(outputs, targets)`: per-example values by name, each of shape `(n,)`.
    * `labels`: what each value of `y` means; none where it means nothing.
    * `answer`: what the outputs are.
    * `target(x, y)`: what they are compared with, in training and evaluation.
    * `pooled`: metrics of a whole set, by name. The first metric, of these if there are any, is the
      one by which rounds are judged.
    * `costs`: names of metrics of which less is better; the loss always is one.
    * `label_shape`: that of one example's `y`, `(h, w)` for masks.
    * `deployed`: what of the model goes to devices, where that is not all of it.
    * `view`: what the model is shown instead of the examples, in training and evaluation.
    """

    name: str
    dataset: str
    input: InputSpec
    labels: tuple[str, ...]
    make_model: Callable[[], nn.Module]
    objective: Callable[[Ground], Objective]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Callable[[Tensor, Tensor], dict[str, Tensor]]
    answer: Answer = "classes"
    target: Callable[[Tensor, Tensor], Tensor] = as_labelled
    pooled: Mapping[str, Pooled] = field(default_factory=dict)
    costs: frozenset[str] = frozenset()
    label_shape: tuple[int, ...] = ()
    deployed: Deployed | None = None
    view: View | None = None

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
        # Two examples: a normalisation over a batch has no answer for one.
        x, y = torch.from_numpy(self.sample(2)), torch.zeros(2, *self.label_shape).long()
        with torch.no_grad():
            found = self.metrics(self.model().eval()(x), self.target(x, y))
        return (*self.pooled, *found, "loss")

    def sample(self, examples: int = 2) -> NDArray[Any]:
        """Returns model input of the right shape and dtype, for tracing: zeros."""
        return np.zeros((examples, *self.input.shape), self.input.dtype)


def parameter_count(task: Task) -> int:
    """Returns the number of trainable parameters, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in task.make_model().parameters())
