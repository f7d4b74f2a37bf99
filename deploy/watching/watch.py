"""What a command was asked to tell of its run, and to whom."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deploy.events import Observer
from deploy.metrics.endpoint import MetricsAddress, served
from deploy.metrics.run import RunMetrics
from deploy.metrics.series import Series
from deploy.watching.mlflow import MLflow
from deploy.watching.sinks import AboutRun, Behind, Fan, Guarded, Sink
from deploy.watching.spans import Spans, is_asked_for
from deploy.watching.tensorboard import TensorBoard
from shared_models.errors import InputError

TRACKERS: Mapping[str, Callable[[AboutRun], Sink]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


@dataclass(frozen=True)
class Watching:
    """Trackers by name, and where metrics are served, if anywhere."""

    trackers: tuple[str, ...] = ()
    metrics: MetricsAddress | None = None


class Watch:
    """Opened for a command; sees over a run."""

    def __init__(self, watching: Watching, series: Series) -> None:
        self._watching, self._series = watching, series

    @contextlib.contextmanager
    def over(self, first: Observer, about: AboutRun) -> Iterator[Observer]:
        """Yields an observer that shows events to the first one, and to all that were asked for."""
        sinks = self._sinks(about, first)
        reason: str | None = "interrupted"
        try:
            yield Fan(first, about.id, sinks)
            reason = None
        except Exception as error:
            reason = str(error)
            raise
        finally:
            for sink in sinks:
                sink.close(reason)

    def _sinks(self, about: AboutRun, say: Observer) -> list[Sink]:
        made: list[Sink] = []
        if self._watching.metrics is not None:
            made.append(Guarded("metrics", functools.partial(RunMetrics, self._series), say))
        for name in self._watching.trackers:
            tracker = Guarded(name, functools.partial(TRACKERS[name], about), say)
            made.append(Behind(tracker, say))
        if is_asked_for(os.environ):
            made.append(Guarded("OpenTelemetry", Spans, say))
        return made


@contextlib.contextmanager
def opened(watching: Watching) -> Iterator[Watch]:
    """Yields the watch, with the metrics served; `InputError` where that cannot be."""
    series = Series()
    with contextlib.ExitStack() as stack:
        if watching.metrics is not None:
            stack.enter_context(served(watching.metrics, series))
        yield Watch(watching, series)


def trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the trackers of these names; `InputError` when there is no such one here."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--track {name}: there are {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--track {name}: is not installed; install the extra {name!r}")
    return tuple(dict.fromkeys(names))
