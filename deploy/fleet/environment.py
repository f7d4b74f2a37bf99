"""The environment of Flower's processes: nothing reaches out, all finds its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deploy.fleet.processes import PARENT_VARIABLE


def flower_environment(flower_home: Path) -> dict[str, str]:
    """Returns this process's environment for one of Flower's, which unpacks bundles in its home."""
    programs = str(Path(sys.executable).parent)  # Flower looks for its own on the path
    return {
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        PARENT_VARIABLE: str(os.getpid()),
        "FLWR_HOME": str(flower_home.absolute()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    }
