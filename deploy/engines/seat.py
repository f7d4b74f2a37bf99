"""What runs inside an actor of a crew: nothing but Python's own modules may be imported here.

A worker may run somebody else's app, whose modules must not meet ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Worker(Protocol):
    """What a crew is made of: made once an actor, then given one job after another."""

    def work(self, *args: Any) -> Any:
        """Does one job; `args` are the job's, and what it raises is the job's loss."""


class WildflowerWorker:
    """An actor that holds a worker. Its name is what the process shows in a process list."""

    _worker: Worker

    def begin(self, make: Callable[..., Worker], args: tuple[Any, ...]) -> None:
        """Makes the worker; apart from the actor, so that its fault is not taken for a death."""
        self._worker = make(*args)

    def work(self, *args: Any) -> Any:
        """Does one job."""
        return self._worker.work(*args)
