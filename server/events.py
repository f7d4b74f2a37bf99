"""What a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from server.records import RoundRecord


@dataclass(frozen=True)
class StageStarted:
    """A learning stage begins, or goes on after `done` rounds."""

    stage: str
    rounds: int
    done: int
    clients: int
    clients_per_round: int


@dataclass(frozen=True)
class BlockFinished:
    """A block of clients came back."""

    stage: str
    round: int
    clients: int


@dataclass(frozen=True)
class RoundFinished:
    """A round is in the checkpoint and in `metrics.jsonl`."""

    record: RoundRecord


@dataclass(frozen=True)
class Waiting:
    """A fleet's run waits for its devices; `unanswered` are connected, and may read their data."""

    clients: int
    wanted: int
    unanswered: int
    seconds: float


@dataclass(frozen=True)
class Notice:
    """Something that a person should know."""

    text: str


Event: TypeAlias = StageStarted | BlockFinished | RoundFinished | Waiting | Notice
Observer: TypeAlias = Callable[[Event], None]
