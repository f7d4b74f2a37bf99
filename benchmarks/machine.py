"""What a measurement was made on."""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil


@functools.cache
def machine() -> dict[str, Any]:
    """Returns cores, CPU model, memory and system as plain values."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "platform": platform.platform(terse=True),
    }


def cpu_model() -> str:
    """Returns the name of the CPU as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug() -> str:
    """Returns a name of the machine for a file, e.g. `amd-epyc-2-cores`."""
    name = f"{cpu_model()} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
