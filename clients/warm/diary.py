"""What a device's owner is told of the runs that ask for it: one line when something changes."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clients.warm.trainer_pb2 import Header
from shared_models.errors import WildflowerError, one_line
from shared_models.verbs import CALIBRATE_BLOCK, EVALUATE_BLOCK, HELLO, TRAIN_BLOCK

Say = Callable[[str], None]

_BEGUN = {TRAIN_BLOCK: "trains", EVALUATE_BLOCK: "is measured", CALIBRATE_BLOCK: "tells its ranges"}


class Diary:
    """Says what is done for whom, and why something is not; a line like the one before is not."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._last = ""

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
