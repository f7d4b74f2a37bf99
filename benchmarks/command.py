"""What the benchmarks' commands share."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from shared_models.errors import InputError, WildflowerError, one_line
from shared_models.files import write_json

RESULTS = Path(__file__).parent / "results"


def result_path(out: Path | None, name: str) -> Path:
    """Returns where a result goes: `out`, or a file with today's date."""
    return out or RESULTS / f"{time.strftime('%Y-%m-%d')}-{name}.json"


def kept(path: Path, key: str) -> dict[str, Any]:
    """Returns what a result file has under a key, an empty one where there is none yet.

    Raises `InputError` when it cannot be gone on with.
    """
    try:
        told = json.loads(path.read_text()) if path.exists() else {key: {}}
        told[key].items()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, told)  # who cannot write learns it now, not after hours of measuring
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: is no result to go on with: {one_line(repr(error))}") from None
    return dict(told)


@contextlib.contextmanager
def told_in_a_line() -> Iterator[None]:
    """Ends the command at an error of ours, with a line on standard error and its exit code."""
    try:
        yield
    except WildflowerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
