"""Ending a process's descendants, whatever sessions and groups they moved to."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable

import psutil

PARENT_VARIABLE = "WILDFLOWER_PARENT"
"""Names the process with which those that it starts have to end."""

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent dies (Linux).

    What a ServerApp started and left is found this way. Elsewhere orphans end by themselves:
    Flower's processes watch their parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(grace_s: float) -> None:
    """Asks every descendant to end (SIGTERM), and kills what is left after `grace_s` seconds."""
    known: set[psutil.Process] = set()
    deadline = time.monotonic() + grace_s
    while alive := _alive(known):
        if time.monotonic() > deadline + 5:
            return  # what SIGKILL does not end is stuck in the kernel
        late = time.monotonic() > deadline
        for process in alive if late else alive - known:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
        known |= alive
        time.sleep(0.05)


def end_with_parent(parent: int) -> None:
    """Ends this process and its descendants when the parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.3)
    end_descendants(grace_s=3)
    os._exit(1)


def has_children(pid: int) -> bool:
    """Whether a process started others that are still there."""
    try:
        return any(_runs(child) for child in psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return False


def reap() -> dict[int, int]:
    """Returns the exit codes of children that ended, adopted ones included, by pid."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def _alive(known: Iterable[psutil.Process]) -> set[psutil.Process]:
    # Those that are known may have lost the parent by which they were found.
    found = {*psutil.Process().children(recursive=True), *known}
    return {process for process in found if _runs(process)}


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
