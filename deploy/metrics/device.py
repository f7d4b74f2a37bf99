"""A device's events as changes of metrics, served while it runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import psutil

from clients.events import Connected, Event, Observer, TrainerStarted, Worked, nobody
from deploy.metrics import catalog
from deploy.metrics.endpoint import MetricsAddress, served
from deploy.metrics.series import Change, Series


def changes(event: Event) -> Iterator[Change]:
    """Yields what an event of a device changes."""
    match event:
        case Connected():
            yield Change(catalog.CONNECTED, (), event.is_connected)
        case TrainerStarted():
            yield Change(catalog.TRAINER_STARTS, (), 1)
        case Worked():
            yield Change(catalog.ANSWERS, (event.verb, event.outcome), 1)
            yield Change(catalog.ANSWER_SECONDS, (event.verb,), event.seconds)
            yield Change(catalog.CLIENT_BYTES, ("down",), event.bytes_down)
            yield Change(catalog.CLIENT_BYTES, ("up",), event.bytes_up)


@contextlib.contextmanager
def watched(address: MetricsAddress | None, hosted: int) -> Iterator[Observer]:
    """Yields an observer whose metrics are served at the address, if there is one."""
    if address is None:
        yield nobody
        return
    series = Series()
    series.apply([Change(catalog.HOSTED, (), hosted), Change(catalog.CONNECTED, (), 0)])
    with served(address, series):
        yield functools.partial(_take, series)


def _take(series: Series, event: Event) -> None:
    series.apply(changes(event))
    if isinstance(event, TrainerStarted):
        series.measure(catalog.TRAINER_MEMORY, functools.partial(memory_of, event.pid))


def memory_of(pid: int) -> float:
    """Returns the resident memory of a process in bytes, 0 when it is gone."""
    try:
        return float(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0.0
