"""Supervised local training: minimise a loss over labelled batches.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, Algorithm 1, ClientUpdate. With personal arrays it is FedPer (Arivazhagan et al.,
"Federated learning with personalization layers", 2019, Algorithm 1) or, when these are the layers
that normalise, FedBN (Li et al., "FedBN: Federated learning on non-IID features via local batch
normalization", ICLR 2021, Algorithm 1): they are trained like the others, but each client keeps
its own.
"""

from __future__ import annotations

import functools
from dataclasses import replace

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
from shared_models.objectives.local import Local, LocalTraining, own_arrays, personal_state
from shared_models.partial import ClientState


def supervised(ground: Ground) -> Objective:
    """Returns the objective that descends on the task's loss; sums are `delta` and `stats`."""
    model = ground.task.make_model().train()
    training = LocalTraining(ground, model)
    personal = "personal" in ground.roles.values()

    def begin(server: Broadcast, state: ClientState, _: Batch) -> Local:
        return training.begin(own_arrays(server.params, state) if personal else server.params)

    def step(local: Local, batch: Batch, noise: Noise) -> tuple[Local, Metrics]:
        local, loss = training.step(local, batch, noise)
        return local, {"loss": loss}

    def end(local: Local) -> tuple[Sums, ClientState, Metrics]:
        return training.sums(local), training.kept(local) if personal else {}, {}

    plain = Objective(begin, step, end, noise_of(model), descent=ground.optimizer)
    if not personal:
        return plain
    init_state = functools.partial(personal_state, ground)
    return replace(plain, init_state=init_state, own_model=own_arrays, descent=None)
