"""What runs inside an actor of a crew: nothing but Python's own modules may be imported here.

A worker may run somebody else's app, whose modules must not meet ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Worker(Protocol):
    """What a crew is made of: made once an actor, then given one job after another."""

    def work(self, *args: Any) -> Any:
        """Does one job: `args` are the job's, then its shared values.

        What it raises is the job's loss.
        """


class WildflowerWorker:
    """An actor that holds a worker. Its name is what the process shows in a process list."""

    _worker: Worker
    _number = 0
    _shared: tuple[Any, ...] = ()

    def begin(self, make: Callable[..., Worker], args: tuple[Any, ...]) -> None:
        """Makes the worker; apart from the actor, so that its fault is not taken for a death."""
        self._worker = make(*args)

    def work(self, number: int, shared: int, *values: Any) -> Any:
        """Does one job: the first `shared` of the values are kept, for later ones that share them.

        `number` tells what the job shares, 0 nothing: it is checked, lest a job gets another's.
        """
        if shared:
            self._number, self._shared = number, values[:shared]
        if number not in (0, self._number):
            raise RuntimeError("what jobs share did not arrive")
        return self._worker.work(*values[shared:], *(self._shared if number else ()))
