"""What the processes of a device say: for the eyes of its owner alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def open_log(path: Path) -> BinaryIO:
    """Opens a log to add to it; whoever else is on this machine cannot read it."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.fchmod(handle, 0o600)  # it may be there from a time when others could
    return os.fdopen(handle, "ab", buffering=0)
