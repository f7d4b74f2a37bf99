"""Work beside the round: evaluation takes time that training need not wait for, a disk, too.

A disk takes as long to be sure of a checkpoint as a small round takes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch


class OneBehind:
    """Runs one piece of work at a time in another thread, in order.

    `run` waits for the work before it, so that nobody gets more than one piece ahead; an error of
    that work comes out there. Leaving the context waits for the last one. When both that work and
    what came after it failed, the error of the work is told: it was there first and is likely the
    cause. An interruption stays one.

    >>> done = []
    >>> with OneBehind() as behind:
    ...     for number in range(3):
    ...         behind.run(lambda number=number: done.append(number))
    >>> done
    [0, 1, 2]
    """

    def __init__(self) -> None:
        # A new thread may compute with more threads than this one, and sum in another order.
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "one-behind", torch.set_num_threads, (threads,))
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self.wait()
        elif self._last is not None and (missed := self._last.exception()) is not None:
            if isinstance(error, Exception):
                missed.add_note(f"and after that: {error}")
                raise missed
            error.add_note(f"and before that: {missed}")

    def run(self, work: Callable[[], None]) -> None:
        """Starts a piece of work when the one before it is done; raises what that one raised."""
        self.wait()
        self._last = self._pool.submit(work)

    def wait(self) -> None:
        """Waits for the work that was started last; raises what it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
