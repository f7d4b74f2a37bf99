"""A run's events in a file, a line of JSON each: who follows from afar sees them at once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.events import BlockFinished, Event, Notice, RoundFinished, StageStarted, Waiting
from server.records import record_from_json

EVENTS = "events.jsonl"
_KINDS: Mapping[str, type[Event]] = {
    "stage_started": StageStarted,
    "block_finished": BlockFinished,
    "round_finished": RoundFinished,
    "waiting": Waiting,
    "notice": Notice,
}


@dataclass(frozen=True)
class Ended:
    """How one of Flower's runs of our run ended: `done`, or `failed` and why."""

    status: str
    flower_run: str
    reason: str | None = None


class EventLog:
    """Appends events to a file; what a killed writer left of a line becomes a line of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, event: Event) -> None:
        """Writes an event."""
        kind = next(name for name, own in _KINDS.items() if isinstance(event, own))
        self._write({"event": kind, **asdict(event)})

    def end(self, ended: Ended) -> None:
        """Writes how it ended; never fails: the disk may be why."""
        told = {} if ended.reason is None else {"reason": ended.reason}
        with contextlib.suppress(OSError):
            self._write({"event": ended.status, "flower_run": ended.flower_run, **told})

    def _write(self, values: Mapping[str, Any]) -> None:
        if not self._path.parent.is_dir():
            return  # the run has not got its folder, and will not get it
        with self._path.open("ab+") as file:
            if file.tell() and not _ends_a_line(self._path):
                file.write(b"\n")
            file.write(json.dumps(values).encode() + b"\n")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def read_event(line: str) -> Event | Ended | None:
    """Returns what `EventLog` wrote; None for a line that a killed process left torn.

    >>> read_event('{"event": "notice", "text": "hello"}')
    Notice(text='hello')
    """
    try:
        values = json.loads(line)
        kind = values.pop("event")
        if kind in ("done", "failed"):
            return Ended(kind, **values)
        if kind == "round_finished":
            return RoundFinished(record_from_json(json.dumps(values["record"])))
        return _KINDS[kind](**values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
