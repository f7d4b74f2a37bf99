"""Work beside the round: a disk takes as long to be sure of a checkpoint as a small round takes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class OneBehind:
    """Runs one piece of work at a time in another thread, in order.

    `run` waits for the work before it, so that nobody gets more than one piece ahead; an error of
    that work comes out there. Leaving the context waits for the last one.

    >>> done = []
    >>> with OneBehind() as behind:
    ...     for number in range(3):
    ...         behind.run(lambda number=number: done.append(number))
    >>> done
    [0, 1, 2]
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
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
            self._wait()
        elif self._last is not None and (missed := self._last.exception()) is not None:
            error.add_note(f"and before that: {missed}")

    def run(self, work: Callable[[], None]) -> None:
        """Starts a piece of work when the one before it is done; raises what that one raised."""
        self._wait()
        self._last = self._pool.submit(work)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()
