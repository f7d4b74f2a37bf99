"""A fleet's run on the server's side: its folder by our own id, and what those far away can read.

The id outlives Flower's runs: a run that ended with its SuperLink is submitted again under it.
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from server.event_log import EVENTS, Ended, EventLog
from server.events import Event, Observer
from server.fleet import is_transport
from server.run_folder import RunFolder
from shared_models.errors import InputError, WildflowerError, one_line
from shared_models.files import locked

_STATE = "WILDFLOWER_STATE"
_HELD_S = 30.0


def fleet_folder(run: str, out: str, environment: Mapping[str, str]) -> Path:
    """Returns the folder of the run with this id in the server's state folder."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}", run):
        raise InputError(f"run config: run {one_line(run)!r} is no run id: letters, digits, - _ .")
    if out:
        raise InputError("run config: out contradicts run, whose folder the server knows")
    if not (state := environment.get(_STATE)):
        raise InputError(
            f"run config: run {run!r} needs {_STATE}; start the server by `wildflower server start`"
        )
    return Path(state) / "runs" / run


def wait_until_free(folder: RunFolder, patience_s: float = _HELD_S) -> None:
    """Waits for the process that had the run before, while it is dying."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        with locked(folder.config_file) as free:
            if free:
                return
        time.sleep(0.2)


@contextlib.contextmanager
def recorded(path: Path, flower_run: int, observe: Observer) -> Iterator[Observer]:
    """Yields an observer that also writes events; how the run ends is an event, and its status.

    An end that is Flower's (the SuperLink went away, somebody stopped the run) is neither.
    """
    log = EventLog(path / EVENTS)

    def both(event: Event) -> None:
        log(event)
        observe(event)

    if RunFolder(path).summary():
        _end(path, None, None)  # of the time before
    try:
        yield both
    except Exception as error:
        if not is_transport(error):
            reason = _reason(error, path.name)
            with contextlib.suppress(OSError):  # the disk may be what has failed
                _end(path, "failed", reason)
            log.end(Ended("failed", str(flower_run), reason))
            if isinstance(error, OSError):
                raise WildflowerError(reason) from error
        raise
    _end(path, "done", None)
    log.end(Ended("done", str(flower_run)))


def _end(path: Path, status: str | None, reason: str | None) -> None:
    folder = RunFolder(path)
    if folder.config_file.exists():
        folder.update_summary(status=status, reason=reason)


def _reason(error: Exception, run: str) -> str:
    if isinstance(error, WildflowerError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}the server's disk is full; free some space, then go on with --resume"
    return one_line(f"{type(error).__name__}: {error}; `wildflower logs {run}` tells where")
