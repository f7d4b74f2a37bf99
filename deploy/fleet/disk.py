"""Keeping what a long-running process leaves behind within bounds."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

LARGEST_LOG_BYTES = 20_000_000


def bound_log(log: Path, largest: int = LARGEST_LOG_BYTES, kept: int | None = None) -> None:
    """Keeps a log beside it, as `.1`, and begins anew when it is too large.

    Of one that grew at once only the newest `kept` bytes are, if that is bounded.
    """
    # Who writes to it keeps it open, so it is copied and emptied, not renamed.
    if log.exists() and (size := log.stat().st_size) > largest:
        with contextlib.suppress(OSError):  # a full disk: emptying it matters more
            _copy(log, log.with_name(f"{log.name}.1"), 0 if kept is None else max(size - kept, 0))
        os.truncate(log, 0)


def _copy(file: Path, copy: Path, start: int) -> None:
    with file.open("rb") as source, copy.open("wb") as target:
        source.seek(start)
        shutil.copyfileobj(source, target)


def size_bytes(folder: Path) -> int:
    """Returns what the files in a folder take, some of which may be on their way out."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += (Path(place) / name).lstat().st_size
    return size


def prune_apps(flower_home: Path, room: int) -> None:
    """Removes Flower's unpacked bundles, the oldest first, until what is left fits into `room`.

    The newest stays: a run may be at it.
    """
    apps, changed = flower_home / "apps", dict[Path, float]()
    for bundle in apps.iterdir() if apps.is_dir() else ():
        with contextlib.suppress(OSError):  # it may be on its way out
            if bundle.is_dir():
                changed[bundle] = bundle.stat().st_mtime
    for bundle in sorted(changed, key=changed.__getitem__)[:-1]:
        if size_bytes(flower_home) <= room:
            return
        shutil.rmtree(bundle, ignore_errors=True)
