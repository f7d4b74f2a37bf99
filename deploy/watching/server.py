"""A server that is watched: a thread beside its supervisor reads what its runs tell.

Runs are processes of their own, and those that end leave their event logs: what is read here is
right again after any restart, of the SuperLink, of a run, of this process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deploy.fleet.home import Running, ServerHome
from deploy.metrics.endpoint import MetricsAddress, served
from deploy.metrics.run import RunMetrics
from deploy.metrics.series import Series
from deploy.metrics.server import ServerMetrics
from deploy.watching.event_files import EventFiles
from deploy.watching.json_lines import JsonLines
from deploy.watching.sinks import Guarded, Sink
from deploy.watching.spans import Spans, is_asked_for
from server.events import Notice
from shared_models.errors import one_line

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pace:
    """How often logs are read, and how often the server is looked at."""

    read_s: float = 1.0
    look_s: float = 15.0


@contextlib.contextmanager
def watched_server(
    home: ServerHome,
    own: Running,
    address: MetricsAddress | None,
    say: Say,
    *,
    as_json: bool = False,
) -> Iterator[None]:
    """Serves metrics, sends spans and writes logs, as far as each is asked for, in the block.

    `own` is where the server of this process listens.
    """
    if address is None and not as_json and not is_asked_for(os.environ):
        yield
        return
    series = Series()
    with contextlib.ExitStack() as stack:
        if address is not None:
            stack.enter_context(served(address, series))
        stack.enter_context(_Watcher(ServerMetrics(home, own, series), home, say, as_json=as_json))
        yield


class _Watcher(threading.Thread):
    def __init__(self, server: ServerMetrics, home: ServerHome, say: Say, *, as_json: bool) -> None:
        super().__init__(name="watcher", daemon=True)
        self._say, self._pace, self._ended = say, Pace(), threading.Event()
        self._files = EventFiles(home.runs)
        self._server, self._metrics = server, RunMetrics(server.series)
        self._news: list[Guarded] = []  # of what happens from now on
        if as_json:
            self._news.append(self._guarded("the log", lambda: JsonLines(sys.stdout)))
        if is_asked_for(os.environ):
            self._news.append(self._guarded("OpenTelemetry", Spans))
        self._told = ""

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        for sink in self._news:
            sink.close(None)

    def run(self) -> None:
        looked = -self._pace.look_s
        while not self._ended.wait(self._pace.read_s):
            with self._patiently():
                self.read()
            if time.monotonic() - looked >= self._pace.look_s:
                looked = time.monotonic()
                with self._patiently():
                    self._server.look()
        with self._patiently():
            self.read()

    def read(self) -> None:
        """Passes on what is new in the logs."""
        for told in self._files.read():
            self._metrics(told.run, told.event)
            for sink in self._news if told.is_new else ():
                sink(told.run, told.event)
        for run in self._files.let_go():
            self._metrics.forget(run)

    def _guarded(self, name: str, open_: Callable[[], Sink]) -> Guarded:
        return Guarded(name, open_, self._note)

    def _note(self, event: object) -> None:
        self._say(event.text if isinstance(event, Notice) else str(event))

    @contextlib.contextmanager
    def _patiently(self) -> Iterator[None]:
        """Says what went wrong, once; who watches must not end what is watched."""
        try:
            yield
        except Exception as error:  # whatever it is, the server goes on
            told = one_line(f"watching: {type(error).__name__}: {error}")
            if told != self._told:
                self._told = told
                self._say(told)
