"""Two nets that play against each other, on every client, in alternating steps.

Goodfellow et al., "Generative adversarial nets", NeurIPS 2014, Algorithm 1 with k = 1. A step is

    discriminator: descend on  -mean log D(x) - mean log(1 - D(G(z)))
    generator:     descend on  -mean log D(G(z'))        (section 3, last but one paragraph)

with new noise z' against the discriminator that the first half has made. Each net has its own state
of the local optimiser; the server averages both, as in Rasouli, Sun, Rajagopal, "FedGAN: federated
generative adversarial networks for distributed data", 2020 (arXiv 2006.07228), Algorithm 1. With
`personal = ["discriminator."]` only the generator is shared.

The model has submodules `generator` and `discriminator`; the first takes `(n, latent)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import softplus

from shared_models.arrays import Arrays, add
from shared_models.errors import InputError
from shared_models.objectives import (
    Batch,
    Broadcast,
    Ground,
    Metrics,
    Noise,
    Objective,
    Sums,
)
from shared_models.objectives.local import Local, LocalTraining
from shared_models.optimizers import OptimizerState
from shared_models.partial import ClientState

LossAt: TypeAlias = Callable[[Arrays], Tensor]

GENERATOR, DISCRIMINATOR = "generator.", "discriminator."


class Playing(NamedTuple):
    """A client in training, and what the optimiser of each net keeps."""

    way: Local
    states: dict[str, OptimizerState]


class Game:
    """The steps of both nets; `latent` is how many numbers an image is made of."""

    def __init__(self, ground: Ground, latent: int) -> None:
        self._ground, self._latent = ground, latent
        self._training = LocalTraining(ground)
        model = ground.task.make_model().train()
        self._nets = {net: model.get_submodule(net[:-1]) for net in (GENERATOR, DISCRIMINATOR)}

    def objective(self) -> Objective:
        """Returns the objective; its sums are those of any local training."""
        plain = self._training.objective()
        return replace(plain, begin=self.begin, step=self.step, end=self.end, draw=self.draw)

    def begin(self, server: Broadcast, state: ClientState, data: Batch) -> Playing:
        """Returns a client that has taken no step; `InputError` when a net is frozen whole."""
        way = self._training.begin(server, state, data)
        init = self._ground.optimizer.init
        states = {net: init(_named(way.params, net)) for net in self._nets if _required(way, net)}
        return Playing(way._replace(optimizer={}), states)

    def draw(self, generator: np.random.Generator, batch: Batch) -> Noise:
        """Returns what both halves of a step make images of: `(n, latent)` for each net."""
        # A client's last batch may be a single example, of which no norm has a variance.
        shape = (max(2, len(batch.x)), self._latent)
        return {
            net: torch.from_numpy(generator.standard_normal(shape)).to(batch.x)
            for net in (DISCRIMINATOR, GENERATOR)
        }

    def step(self, local: Playing, batch: Batch, noise: Noise) -> tuple[Playing, Metrics]:
        """Takes a step of the discriminator, then one of the generator."""
        real = batch.x.flatten(1)

        def told_apart(arrays: Arrays) -> Tensor:
            made = self._run(GENERATOR, arrays, noise[DISCRIMINATOR])
            real_logits = self._run(DISCRIMINATOR, arrays, real)
            made_logits = self._run(DISCRIMINATOR, arrays, made)
            return softplus(-real_logits).mean() + softplus(made_logits).mean()

        def taken_for_real(arrays: Arrays) -> Tensor:
            made = self._run(GENERATOR, arrays, noise[GENERATOR])
            return softplus(-self._run(DISCRIMINATOR, arrays, made)).mean()

        local, loss = self._descend(local, DISCRIMINATOR, told_apart)
        local, fooled = self._descend(local, GENERATOR, taken_for_real)
        way = local.way._replace(steps=local.way.steps + 1)
        return local._replace(way=way), {"loss": loss, "generator_loss": fooled}

    def end(self, local: Playing) -> tuple[Sums, ClientState, Metrics]:
        """Returns what any local training does."""
        return self._training.end(local.way)

    def _run(self, net: str, arrays: Arrays, x: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self._nets[net], _renamed(arrays, net), (x,))
        return outputs

    def _descend(self, local: Playing, net: str, loss_at: LossAt) -> tuple[Playing, Tensor]:
        """Takes a step of one net, whose running statistics alone move with it."""
        way, optimizer = local.way, self._ground.optimizer
        own = _named(way.params, net)

        def loss_of(params: Arrays) -> tuple[Tensor, Arrays]:
            buffers = {name: tensor.clone() for name, tensor in way.buffers.items()}
            return loss_at({**way.params, **buffers, **params}), buffers

        slope, loss, buffers = self._ground.gradient(loss_of, own)
        change, state = optimizer.update(slope, local.states[net], own)
        params = {**way.params, **add(own, change)}
        way = way._replace(params=params, buffers={**way.buffers, **_named(buffers, net)})
        return Playing(way, {**local.states, net: state}), loss


def gan(ground: Ground, latent: int) -> Objective:
    """Returns the objective of a generator and a discriminator; sums are `delta` and `stats`."""
    return Game(ground, latent).objective()


def _named(arrays: Mapping[str, Tensor], net: str) -> Arrays:
    return {name: tensor for name, tensor in arrays.items() if name.startswith(net)}


def _renamed(arrays: Arrays, net: str) -> Arrays:
    return {name.removeprefix(net): own for name, own in _named(arrays, net).items()}


def _required(way: Local, net: str) -> bool:
    if not _named(way.params, net):
        raise InputError(f"freezes: nothing is left that the {net[:-1]} could learn")
    return True
