"""The report at the end of a run: a service to people, which no run fails for."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from shared_models.errors import WildflowerError, one_line

_NEEDED = ("jinja2", "plotly")


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Writes a run's report when what runs in it is over, with the reason if it failed.

    Nothing is written without the `report` extra, nor for a run that the user interrupts.
    """
    from deploy.report.reading import FAILED, keep_failure

    try:
        yield
    except WildflowerError as error:
        with contextlib.suppress(OSError):  # a full disk may be why
            keep_failure(path, str(error))
        close(path)
        raise
    (path / FAILED).unlink(missing_ok=True)
    close(path)


def close_again(path: Path) -> None:
    """Writes the report of a run that is done, where it was killed before it had one."""
    if not (path / "report.html").exists():
        close(path)


def close(path: Path) -> None:
    """Writes the report of a run folder, or says on standard error why not."""
    known = all(importlib.util.find_spec(name) for name in _NEEDED)
    if not known or not (path / "config.toml").is_file():
        return
    try:
        from deploy.report.page import REPORT, write_report

        for torn in path.glob(f".{REPORT}.*.tmp"):  # of a process that was killed
            torn.unlink(missing_ok=True)
        write_report([path], path / REPORT)
    except Exception as error:  # whatever it is, the run is done
        reason = one_line(f"{type(error).__name__}: {error}")
        print(f"note: {path}: no report: {reason}", file=sys.stderr)
