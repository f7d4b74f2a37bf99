"""All that the next round depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shared_models.arrays import Arrays
from shared_models.objectives import Extras
from shared_models.optimizers import OptimizerState
from shared_models.partial import ClientState


@dataclass(frozen=True)
class ServerState:
    """The model after `round` rounds of `stage`; round 0 is the model that the stage began with.

    `extras` are what the objective keeps on the server, by name.
    """

    stage: str
    round: int
    params: Arrays
    optimizer: OptimizerState
    extras: Extras = field(default_factory=dict)


class StateStore(Protocol):
    """Where what clients keep lies between rounds, by stage and round."""

    def load(self, stage: str, number: int, client_ids: Sequence[int]) -> dict[int, ClientState]:
        """Returns each client's newest state of round `number` or before, where it has one."""

    def newest(self, stage: str, number: int, client_ids: Sequence[int]) -> dict[int, int]:
        """Returns the rounds of those states."""

    def save(self, stage: str, number: int, states: Mapping[int, ClientState]) -> None:
        """Keeps states of a round."""

    def rewind(self, stage: str, number: int) -> None:
        """Drops the states of rounds after `number`."""

    def commit(self) -> None:
        """Makes durable what was saved and dropped."""

    def prune(self, stage: str, number: int, best: int = 0) -> None:
        """Drops what nobody needs who goes on after round `number`, or wants those of `best`."""
