"""The event logs of a server's runs, read as they grow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.events import Event
from server.event_log import EVENTS, Ended, read_event

_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Told:
    """An event of a run; not `is_new` if it was told before anybody watched."""

    run: str
    event: Event | Ended
    is_new: bool


@dataclass
class _File:
    """How far a log was read, and what there was of it at first."""

    old: int
    offset: int = 0
    rest: bytes = b""


class EventFiles:
    """The logs below a folder of runs; those that nobody writes to for a while are let go."""

    def __init__(self, runs: Path, kept_s: float = 24 * 3600.0) -> None:
        self._runs, self._kept_s = runs, kept_s
        self._files: dict[Path, _File] = {}
        self._is_first = True

    def read(self) -> Iterator[Told]:
        """Yields what is new since the last time; at first, all that there is."""
        for path in sorted(self._runs.glob(f"*/{EVENTS}")):
            with contextlib.suppress(OSError):  # gone since, or not for us
                found = path.stat()
                if time.time() - found.st_mtime <= self._kept_s:
                    yield from self._read(path, found.st_size)
        self._is_first = False

    def let_go(self) -> list[str]:
        """Returns the runs that are known and not written to any more, and forgets them."""
        gone = [path for path in self._files if _age_s(path) > self._kept_s]
        for path in gone:
            del self._files[path]
        return [path.parent.name for path in gone]

    def _read(self, path: Path, size: int) -> Iterator[Told]:
        known = self._files.get(path)
        if known is None or size < known.offset:  # another file under that name
            known = self._files[path] = _File(size if self._is_first else 0)
        with path.open("rb") as file:
            file.seek(known.offset)
            while piece := file.read(_PIECE_BYTES):
                *lines, known.rest = (known.rest + piece).split(b"\n")
                is_new = known.offset >= known.old
                known.offset += len(piece)
                for line in lines:
                    if (event := read_event(line.decode(errors="replace"))) is not None:
                        yield Told(path.parent.name, event, is_new)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")
