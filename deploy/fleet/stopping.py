"""Being asked to stop: SIGTERM and SIGHUP end quietly, Ctrl-C says so."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether and how a long-running process was asked to stop."""

    def __init__(self) -> None:
        self.interrupted = False
        self._asked = threading.Event()

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Is the signals' handler."""
        self.interrupted = self.interrupted or number == signal.SIGINT
        self._asked.set()

    def within(self, seconds: float) -> bool:
        """Waits at most so long; returns whether the process was asked to stop."""
        return self._asked.wait(seconds)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Yields a `Stop` that signals set, and restores their handlers at the end."""
    stop = Stop()
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which is what nohup asks for
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
