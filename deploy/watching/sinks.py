"""Observers that are guarded: one that fails is told of once and left out from then on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.events import Event, Observer
from server.event_log import Ended
from server.events import Notice
from shared_models.errors import one_line


@dataclass(frozen=True)
class AboutRun:
    """The run that is watched: its id, its folder, its resolved config as TOML."""

    id: str
    folder: Path
    config: str


class Sink(Protocol):
    """Takes events until it is closed; `reason` says why a run failed, None that it did not."""

    def __call__(self, run: str, event: Event | Ended, /) -> None:
        """Takes an event of a run; whatever it raises is caught."""

    def close(self, reason: str | None, /) -> None:
        """Ends; whatever it raises is caught."""


class Guarded:
    """A sink that is opened when the run has begun, and fails alone."""

    def __init__(self, name: str, open_: Callable[[], Sink], say: Observer) -> None:
        self.name, self._open, self._say = name, open_, say
        self._sink: Sink | None = None
        self._failed = False

    def __call__(self, run: str, event: Event | Ended) -> None:
        """Passes an event on."""
        early = self._sink is None and isinstance(event, Notice)  # there is no run folder yet
        if self._failed or early:
            return
        try:
            if self._sink is None:
                self._sink = self._open()
            self._sink(run, event)
        except Exception as error:  # whatever it is, the run goes on
            self._fail(error)

    def close(self, reason: str | None) -> None:
        """Closes the sink if it was ever opened."""
        if self._sink is None or self._failed:
            return
        try:
            self._sink.close(reason)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        told = one_line(f"{type(error).__name__}: {error}")
        self._say(Notice(f"{self.name} is left out from here on: {told}"))


class Behind:
    """A sink in a thread of its own: one that is slow, or far away, keeps no round waiting."""

    def __init__(self, sink: Guarded, say: Observer, patience_s: float = 60.0) -> None:
        self._sink, self._say, self._patience_s = sink, say, patience_s
        self._waiting: queue.SimpleQueue[tuple[str, Event | Ended] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._reason: str | None = None
        self._thread.start()

    def __call__(self, run: str, event: Event | Ended) -> None:
        """Takes an event; it is passed on soon."""
        self._waiting.put((run, event))

    def close(self, reason: str | None) -> None:
        """Waits until all is passed on, but not for ever."""
        self._reason = reason
        self._waiting.put(None)
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            told = f"{self._sink.name} does not keep up: its last rounds may be missing there"
            self._say(Notice(told))

    def _work(self) -> None:
        while (told := self._waiting.get()) is not None:
            self._sink(*told)
        self._sink.close(self._reason)


class Fan:
    """An observer that shows events to a first one, whose errors count, and then to sinks."""

    def __init__(self, first: Observer, run: str, sinks: Sequence[Sink]) -> None:
        self._first, self._run, self._sinks = first, run, sinks

    def __call__(self, event: Event) -> None:
        """Passes an event on."""
        self._first(event)
        for sink in self._sinks:
            sink(self._run, event)
