"""What a crew is set to do in tests; actors import this, so it is light."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class OddJobber:
    """A worker that does what its jobs say."""

    def __init__(self, greeting: str = "hello") -> None:
        if greeting != "hello":
            raise RuntimeError(f"{greeting}\nis no greeting")

    def work(self, what: Callable[..., Any], *args: Any) -> Any:
        return what(*args)


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def note(file: Path, seconds: float) -> None:
    file.touch()
    time.sleep(seconds)


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(been: Path) -> int:
    if not been.exists():
        been.touch()
        die()
    return os.getpid()


def fail() -> None:
    raise ValueError("bad\nthing")


def is_a_view(x: np.ndarray[Any, Any]) -> tuple[int, bool, float]:
    return id(x), x.flags.owndata, float(x.sum())
