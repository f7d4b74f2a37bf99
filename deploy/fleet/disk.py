"""Keeping what a long-running process leaves behind within bounds."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from clients.warm.logs import open_log

LARGEST_LOG_BYTES = 20_000_000
_LEAST_FREE = 8 * 2**20  # with less, what a run or a training has to write may not fit


def bound_log(
    log: Path,
    largest: int = LARGEST_LOG_BYTES,
    kept: int | None = None,
    last_look: Callable[[], object] = lambda: None,
) -> bool:
    """Keeps a log beside it, as `.1`, and begins anew when it is too large; returns whether it did.

    Of one that grew at once only the newest `kept` bytes are, if that is bounded. `last_look` is
    called just before the log is emptied, for whoever follows it.
    """
    if not log.exists() or (size := log.stat().st_size) <= largest:
        return False
    # Who writes to it keeps it open, so it is copied and emptied, not renamed.
    with contextlib.suppress(OSError):  # a full disk: emptying it matters more
        _copy(log, log.with_name(f"{log.name}.1"), 0 if kept is None else max(size - kept, 0))
    last_look()
    os.truncate(log, 0)
    return True


def _copy(file: Path, copy: Path, start: int) -> None:
    with file.open("rb") as source, open_log(copy) as target:
        target.truncate(0)
        source.seek(start)
        shutil.copyfileobj(source, target)


def full_disk(folder: Path) -> str | None:
    """Returns that the disk of a folder is full, in words; None while there is room."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None  # the folder is gone, which others tell
    if free >= _LEAST_FREE:
        return None
    return f"{folder}: its disk is full ({free / 2**20:.0f} MB free); free some space"


class Tail:
    """Follows a log from its present end on: every byte once, also when it begins anew."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0

    def read(self) -> str:
        """Returns what was added since it was asked last."""
        with self._log.open("rb") as file:
            if self._offset > file.seek(0, os.SEEK_END):
                self._offset = 0  # somebody else emptied it
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        return new.decode(errors="replace")

    def bound(self, largest: int, kept: int) -> str:
        """Does what `bound_log` does; returns what was added until then, if it began anew."""
        new: list[str] = []
        if bound_log(self._log, largest, kept, lambda: new.append(self.read())):
            self._offset = 0
        return "".join(new)


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
        # Half of a bundle, as a killed process would leave it, would be taken for a whole one.
        doomed = bundle.with_name(f".{bundle.name}.removed")
        with contextlib.suppress(OSError):
            bundle.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
