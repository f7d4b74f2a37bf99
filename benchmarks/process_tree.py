"""Runs a program and watches how much memory it and all its descendants take together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from shared_models.errors import WildflowerError, one_line

PAUSE_S, LONGEST_PAUSE_S = 0.5, 2.0
SHARE = 0.02  # looking should take no more of a core's time: two cores have none to give away


@dataclass(frozen=True)
class Watched:
    """A program that has ended well; `began` is in seconds since the epoch."""

    began: float
    seconds: float
    peak_pss_mb: float | None


def pss_mb(root: int) -> float | None:
    """Returns the memory of a process and its descendants in MB; None where nobody counts PSS.

    PSS counts a page that n processes share as 1/n in each, so that the sum over the tree counts
    every page once: forked workers, mapped files and Ray's object store included.
    """
    if not Path(f"/proc/{root}/smaps_rollup").exists():
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
        return sum(_pss_kb(pid) for pid in tree) / 1024
    return None


def _pss_kb(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended in the meantime
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:"), 0)


def watch(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str],
    limit_s: float,
    share: float = SHARE,
) -> Watched:
    """Runs a command to its end; raises `WildflowerError` with its last words if it fails.

    Its memory is looked at every half second; up to every two where that costs `share` of a core.
    A command that takes longer than `limit_s`, or is interrupted, is killed with its descendants.
    """
    began, peak = time.time(), None
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
        )
        try:
            peak = _watch_until_done(process, began + limit_s, share)
        except BaseException:
            _kill_tree(process)
            raise
    seconds = time.time() - began
    if process.returncode != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        said = one_line(" ".join(last)) or "nothing"
        raise WildflowerError(
            f"{' '.join(command[:6])}: exit code {process.returncode}; its last words: {said}"
        )
    return Watched(began, seconds, peak)


def _watch_until_done(
    process: subprocess.Popen[bytes], deadline: float, share: float
) -> float | None:
    peak, pause = None, PAUSE_S
    while True:
        try:
            process.wait(timeout=pause)
        except subprocess.TimeoutExpired:
            looked = time.perf_counter()
            peak = max(filter(None, (peak, pss_mb(process.pid))), default=None)
            took = time.perf_counter() - looked
            pause = min(max(PAUSE_S, took / share), LONGEST_PAUSE_S)
        else:
            return peak
        if time.time() > deadline:
            raise WildflowerError(f"{process.args!r}: took too long and was killed")


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends a program that we started, and what it started."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    for pid in (process.pid, *(child.pid for child in children)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=5)
