"""All that the next round depends on."""

from __future__ import annotations

from dataclasses import dataclass

from shared_models.arrays import Arrays
from shared_models.optimizers import OptimizerState


@dataclass(frozen=True)
class ServerState:
    """The model after `round` rounds of `stage`; round 0 is the model that the stage began with."""

    stage: str
    round: int
    params: Arrays
    optimizer: OptimizerState
