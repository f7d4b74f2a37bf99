"""Keeping what a long-running process leaves behind within bounds."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

LARGEST_LOG_BYTES = 20_000_000


def bound_log(log: Path, largest: int = LARGEST_LOG_BYTES) -> None:
    """Keeps the newest part of a log beside it, as `.1`, and begins anew when it is too large."""
    # Who writes to it keeps it open, so it is copied and emptied, not renamed.
    if log.exists() and log.stat().st_size > largest:
        with contextlib.suppress(OSError):  # a full disk: emptying it matters more
            shutil.copy(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def size_bytes(folder: Path) -> int:
    """Returns what the files in a folder take."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def prune_apps(flower_home: Path, room: int) -> None:
    """Removes Flower's unpacked bundles, the oldest first, until what is left fits into `room`.

    The newest stays: a run may be at it.
    """
    apps = flower_home / "apps"
    bundles = [path for path in apps.iterdir() if path.is_dir()] if apps.is_dir() else []
    for bundle in sorted(bundles, key=lambda path: path.stat().st_mtime)[:-1]:
        if size_bytes(flower_home) <= room:
            return
        shutil.rmtree(bundle, ignore_errors=True)
