"""What server and nodes say to each other, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from shared_models.arrays import Arrays
from shared_models.partial import About, ClientState, Partial, Status

ABSENT = -1
"""The node of a client that is not connected: Flower's ids are not negative."""


@dataclass(frozen=True)
class Kept:
    """What clients begin with whose nodes keep what they keep.

    It is filed under our own id of the `run`; each begins from its state `since` a round, 0 where
    it has none yet.
    """

    run: str
    since: Mapping[int, int]


@dataclass(frozen=True)
class Hello:
    """A node's answer to "who are you": which clients it hosts, on which data, with what versions.

    `shared` nodes (simulation workers) can each train any of the listed clients; otherwise the
    clients are the node's own. `examples` are counts, in the order of `client_ids`, and `labelled`
    counts of those that have a label, none where all have. A node that `keeps_states` has a place
    for what its clients keep from round to round.
    """

    client_ids: tuple[int, ...]
    examples: tuple[int, ...]
    shared: bool
    data_sha256: str
    versions: Mapping[str, str]
    keeps_states: bool = False
    labelled: tuple[int, ...] = ()


@dataclass(frozen=True)
class BlockRequest:
    """Train these clients, in this order, from these weights; `node` None means any node.

    `attempt` counts the cohorts that a round has tried: 0 unless one fell below its quorum.
    `extras` are what the server tells all clients besides the weights, `states` what these clients
    have kept; one who has kept nothing has none. Where their node has it, `kept` says which.
    """

    stage: str
    round: int
    attempt: int
    block: int
    client_ids: tuple[int, ...]
    params: Arrays
    node: int | None = None
    extras: Mapping[str, Arrays] = field(default_factory=dict)
    states: Mapping[int, ClientState] = field(default_factory=dict)
    kept: Kept | None = None

    @property
    def about(self) -> About:
        """Which round it is about."""
        return self.stage, self.round, self.attempt


@dataclass(frozen=True)
class BlockFailure:
    """A block that did not come back, or not as it should have, and why.

    `timed_out` says that a clock on the wall, or the death of workers, decided: another time it may
    come back.
    """

    reason: str
    status: Status = "failed"
    timed_out: bool = False


Reply: TypeAlias = Partial | BlockFailure
Send: TypeAlias = Callable[[Iterable[BlockRequest]], Iterator[Reply]]
"""Carries requests to clients; replies come lazily, one per request, in request order."""
