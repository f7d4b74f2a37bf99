"""Runs' metrics: their events become series."""

from __future__ import annotations

from deploy.events import Event
from deploy.metrics import catalog
from deploy.metrics.rounds import Progress, changes, progressed
from deploy.metrics.series import Change, Series
from server.event_log import Ended


class RunMetrics:
    """Takes the events of runs into the series."""

    def __init__(self, series: Series) -> None:
        self._series = series
        self._progress: dict[str, Progress] = {}

    def __call__(self, run: str, event: Event | Ended) -> None:
        """Takes an event of a run in."""
        self._series.apply([*changes(run, event), *self._queue(run, event)])

    def forget(self, run: str) -> None:
        """Drops all that is known of a run."""
        self._progress.pop(run, None)
        self._series.forget(run)

    def close(self, _reason: str | None) -> None:
        """Leaves the series as they are: a scrape may still come."""

    def _queue(self, run: str, event: Event | Ended) -> list[Change]:
        before = self._progress.get(run, Progress())
        now = self._progress[run] = progressed(before, event)
        waits = {} if before.stage is None else {before.stage: 0}  # nobody, when the next begins
        if now.stage is not None:
            waits[now.stage] = now.waiting
        return [Change(catalog.QUEUE, (run, stage), n) for stage, n in waits.items()]
