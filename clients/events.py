"""What a device tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

OUTCOMES = ("answered", "declined", "refused", "died", "unwanted")
"""What may become of a server's message: there is an answer; it is not the time, or the data are
unfit; the training failed; the trainer died; nobody waits any more."""


@dataclass(frozen=True)
class Connected:
    """Whether the device is connected to its server; told again and again."""

    is_connected: bool


@dataclass(frozen=True)
class TrainerStarted:
    """A trainer was started, the process `pid`."""

    pid: int


@dataclass(frozen=True)
class Worked:
    """A message was worked on; `outcome` is one of `OUTCOMES`."""

    verb: str
    outcome: str
    seconds: float
    bytes_down: int
    bytes_up: int


Event: TypeAlias = Connected | TrainerStarted | Worked
Observer: TypeAlias = Callable[[Event], None]


def nobody(_event: Event) -> None:
    """Watches nothing."""
