"""What a process does before it trains."""

from __future__ import annotations

import ctypes
import os

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MB = -1, -3, 1 << 20  # of malloc.h
_CHOSEN = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}


def get_ready() -> None:
    """Has this process train in one thread, in memory that it does not give back at once.

    More threads would change the order of sums, and so the bytes; workers scale instead.

    Every step frees large tensors and asks for as large ones. By default glibc gives such memory
    back to the system, which fills each page with zeros when it is asked for again: up to a third
    of the time (docs/design/0005-trainers.md). So a process may keep what it had at its peak. Other
    libraries do as they do, and so does glibc where the user has said how, in the environment.
    Not for a device's warm trainer, which waits for most of its life.
    """
    torch.set_num_threads(1)
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and not _CHOSEN & os.environ.keys():
        library.mallopt(_MMAP_THRESHOLD, 32 * _MB)  # the most that it takes
        library.mallopt(_TRIM_THRESHOLD, 256 * _MB)
