"""What a device's owner is told of the runs that ask for it: one line when something changes."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clients.events import Observer, TrainerStarted, Worked, nobody
from clients.warm.trainer_pb2 import Header
from shared_models.errors import WildflowerError, one_line
from shared_models.verbs import CALIBRATE_BLOCK, EVALUATE_BLOCK, HELLO, TRAIN_BLOCK

Say = Callable[[str], None]

_BEGUN = {TRAIN_BLOCK: "trains", EVALUATE_BLOCK: "is measured", CALIBRATE_BLOCK: "tells its ranges"}


@dataclass
class Work:
    """What came of a message: one of `clients.events.OUTCOMES`, and how long its answer is."""

    outcome: str = "refused"
    bytes_up: int = 0


def _silent(_line: str) -> None:
    """Says nothing."""


class Diary:
    """Says what is done for whom, and why something is not; a line like the one before is not."""

    def __init__(self, say: Say = _silent, observe: Observer = nobody) -> None:
        self._say, self._observe = say, observe
        self._last = ""

    def started(self, pid: int) -> None:
        """Notes that a trainer was started."""
        self._observe(TrainerStarted(pid))

    @contextmanager
    def work(self, header: Header) -> Iterator[Work]:
        """Measures the work on a message; who does it says what came of it."""
        began, work = time.monotonic(), Work()
        try:
            yield work
        finally:
            seconds = time.monotonic() - began
            size = header.total_bytes
            self._observe(Worked(header.verb, work.outcome, seconds, size, work.bytes_up))

    @contextmanager
    def entry(self, header: Header) -> Iterator[None]:
        """Notes a message that is answered inside; an error is why it is not."""
        if begun := _BEGUN.get(header.verb):
            self._note(header, begun)
        try:
            yield
        except WildflowerError as error:
            lost = "cannot take part" if header.verb == HELLO else "gives no update"
            self._note(header, f"{lost}: {error}")
            raise
        if header.verb == HELLO:
            self._note(header, "has answered the roll call")

    def left_out(self, header: Header, reason: str) -> None:
        """Notes that the server does without this device."""
        self._note(header, f"is left out by the server: {one_line(reason)}")

    def _note(self, header: Header, what: str) -> None:
        line = f"run {_name(header.config)!r}: this device {what}"
        if line != self._last:
            self._last = line
            self._say(line)


def _name(config: str) -> str:
    try:
        return one_line(str(tomllib.loads(config).get("name", "unnamed")), 80)
    except tomllib.TOMLDecodeError:
        return "unreadable"
