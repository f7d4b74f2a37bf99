"""What this machine has."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Returns the physical cores that this process may use: a second thread of one adds nothing."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    """Returns the name of a logical CPU's core: those that share it have one name."""
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return file.read_text()
    except OSError:
        return str(cpu)
