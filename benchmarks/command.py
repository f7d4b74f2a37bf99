"""What the benchmarks' commands share."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import typer

from shared_models.errors import WildflowerError

RESULTS = Path(__file__).parent / "results"


def result_path(out: Path | None, name: str) -> Path:
    """Returns where a result goes: `out`, or a file with today's date."""
    return out or RESULTS / f"{time.strftime('%Y-%m-%d')}-{name}.json"


@contextlib.contextmanager
def told_in_a_line() -> Iterator[None]:
    """Ends the command at an error of ours, with a line on standard error and its exit code."""
    try:
        yield
    except WildflowerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
