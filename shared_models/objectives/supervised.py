"""Supervised local training: minimise a loss over labelled batches.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, Algorithm 1, ClientUpdate. With personal arrays it is FedPer (Arivazhagan et al.,
"Federated learning with personalization layers", 2019, Algorithm 1) or, when these are the layers
that normalise, FedBN (Li et al., "FedBN: Federated learning on non-IID features via local batch
normalization", ICLR 2021, Algorithm 1): they are trained like the others, but each client keeps
its own.
"""

from __future__ import annotations

from dataclasses import replace

from shared_models.objectives import Ground, Objective
from shared_models.objectives.local import LocalTraining


def supervised(ground: Ground) -> Objective:
    """Returns the objective that descends on the task's loss; sums are `delta` and `stats`."""
    training = LocalTraining(ground)
    plain = training.objective()
    # A trainer that takes the steps in another way would not know what stays with a client, or
    # as it is.
    if plain.keeps_state or training.freezes:
        return plain
    return replace(plain, descent=ground.optimizer)
