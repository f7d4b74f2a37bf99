"""How much memory a run takes: this process and all that it started."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

# Looking at a gigabyte takes the kernel a tenth of a second, in which workers that want a new page
# stand still. What a run takes shows in its first rounds.
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class MemoryPeak:
    """The largest size that was seen; it is looked for often at first, then once a minute."""

    def __init__(self) -> None:
        self.mb = 0.0
        self._next = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def look(self) -> None:
        """Looks, unless it did a while ago."""
        if time.monotonic() >= self._next:
            self.mb = max(self.mb, tree_mb())
            self._next = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


def tree_mb() -> float:
    """Returns the memory of this process and its descendants in MB.

    Pages that several processes share are counted once (PSS), where the kernel tells; else they are
    counted in each.
    """
    return sum(_bytes_of(process) for process in _tree()) / 2**20


def _tree() -> Iterator[psutil.Process]:
    this = psutil.Process()
    yield this
    yield from this.children(recursive=True)


def _bytes_of(process: psutil.Process) -> int:
    try:
        told = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        return 1024 * next(int(line.split()[1]) for line in told.splitlines() if line[:4] == "Pss:")
    except (OSError, StopIteration):  # no such file on this system, or the process has just ended
        with contextlib.suppress(psutil.Error):
            return int(process.memory_info().rss)
    return 0
