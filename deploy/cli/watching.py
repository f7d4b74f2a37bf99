"""Options of the verbs that can be watched: metrics, trackers, logs as JSON."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.output import console
from shared_models.errors import InputError

if TYPE_CHECKING:
    from deploy.events import Observer
    from deploy.metrics.endpoint import MetricsAddress
    from deploy.watching.sinks import AboutRun
    from deploy.watching.watch import Watch, Watching


class LogFormat(StrEnum):
    """How progress is told."""

    text = "text"
    json = "json"


MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port", min=1, max=65535, help="Serve metrics for Prometheus: docs/metrics.md."
    ),
]
MetricsBind = Annotated[
    str,
    typer.Option("--metrics-bind", help="The address that they are served on, to whoever asks."),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="Tell tensorboard or mlflow of each round; may be repeated."),
]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option("--log-format", help="Progress as text, or as a line of JSON an event."),
]
LOOPBACK = "127.0.0.1"


def metrics_address(port: int | None, bind: str) -> MetricsAddress | None:
    """Returns where metrics are served, None for nowhere."""
    from deploy.metrics.endpoint import MetricsAddress

    if port is None and bind != LOOPBACK:
        raise InputError(f"--metrics-bind {bind}: needs --metrics-port")
    return None if port is None else MetricsAddress(bind, port)


@dataclass(frozen=True)
class Shown:
    """Who watches a run, and how its progress is told; `as_json` keeps it off standard output."""

    watching: Watching
    log_format: LogFormat
    as_json: bool


def watching(track: list[str] | None, metrics: MetricsAddress | None = None) -> Watching:
    """Returns what the options ask for; `InputError` where there is no such tracker."""
    from deploy.watching.watch import Watching, trackers

    return Watching(trackers(track or ()), metrics)


@contextlib.contextmanager
def observer(watch: Watch, about: AboutRun, shown: Shown, first_line: str) -> Iterator[Observer]:
    """Yields whom a run tells: a display that begins with a line, and all who watch."""
    from server.events import Notice

    with _display(shown, about.id) as first:
        if shown.log_format is LogFormat.json:
            first(Notice(first_line))
        else:
            console(stderr=shown.as_json).print(first_line, markup=False)
        with watch.over(first, about) as observe:
            yield observe


def _display(shown: Shown, run: str) -> AbstractContextManager[Observer]:
    """Returns what shows a run's events; lines of JSON go to standard error, beside the result."""
    if shown.log_format is LogFormat.json:
        from deploy.watching.json_lines import JsonLines

        return contextlib.nullcontext(functools.partial(JsonLines(sys.stderr), run))
    from deploy.cli.progress import Display

    return Display(console(stderr=shown.as_json))


def speaker(log_format: LogFormat, who: str) -> Callable[[str], None]:
    """Returns what says a line of a server or a device on standard output."""
    if log_format is LogFormat.text:
        return lambda told: print(told, flush=True)
    from deploy.watching.json_lines import line

    return lambda told: print(line({"level": "info", "from": who, "message": told}), flush=True)
