"""A fleet's run on the server's side: its folder by our own id, and what those far away can read.

The id outlives Flower's runs: a run that ended with its SuperLink is submitted again under it.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from server.event_log import EVENTS, Ended, EventLog
from server.events import Event, Observer
from server.fleet_register import Register, read_register
from server.replies import is_transport
from server.run_folder import RunFolder
from shared_models.errors import InputError, WildflowerError, one_line

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


def fleet_register(environment: Mapping[str, str]) -> Register:
    """Returns the devices that the server of this process knows."""
    return read_register(Path(environment[_STATE]))


@contextlib.contextmanager
def recorded(path: Path, flower_run: int, observe: Observer) -> Iterator[Observer]:
    """Yields an observer that also writes events; how the run ends is an event.

    An end that is Flower's (the SuperLink went away, somebody stopped the run) is none.
    """
    log = EventLog(path / EVENTS)

    def both(event: Event) -> None:
        log(event)
        observe(event)

    try:
        yield both
    except Exception as error:
        if not is_transport(error):
            reason = _reason(error, path.name)
            log.end(Ended("failed", str(flower_run), reason))
            if isinstance(error, OSError):
                raise WildflowerError(reason) from error
        raise
    log.end(Ended("done", str(flower_run)))


@contextlib.contextmanager
def held_for_run(folder: RunFolder) -> Iterator[None]:
    """Holds a folder for a run on a fleet; how that ends becomes the status in its summary.

    The process that had the run before may be dying: it is waited for, and what it still writes
    comes before the status is cleared.
    """
    with folder.held(_HELD_S):
        if folder.summary():
            folder.update_summary(status=None, reason=None)  # of the time before
        try:
            yield
        except Exception as error:
            if not is_transport(error):
                with contextlib.suppress(OSError):  # the disk may be what has failed
                    reason = _reason(error, folder.path.name)
                    folder.update_summary(status="failed", reason=reason)
            raise
        folder.update_summary(status="done", reason=None)


def _reason(error: Exception, run: str) -> str:
    if isinstance(error, WildflowerError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}the server's disk is full; free some space, then go on with --resume"
    return one_line(f"{type(error).__name__}: {error}; `wildflower logs {run}` tells where")
