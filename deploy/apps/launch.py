"""Starts a process of its own for an app and tells what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.apps.app import FlowerApp
from shared_models.errors import InputError, Interrupted, WildflowerError
from shared_models.machine import cores

_ROOT = Path(__file__).parents[2]
# `-P` and no PYTHONPATH: the app's modules come from its folder or from the environment.
_START = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.path.insert(0, sys.argv[1])
from deploy.apps.driver import main
main(*sys.argv[2:])
"""
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_GRACE_S = 30.0


def run_app(
    app: FlowerApp, nodes: int, workers: int | None = None, *, quiet_stdout: bool = False
) -> dict[str, Any]:
    """Runs an app on `nodes` simulated nodes in the current folder; returns what went through it.

    Without `workers` there is one a core. With `quiet_stdout` what the app prints goes to standard
    error.

    Raises:
        InputError: the app cannot be loaded, or there are no nodes or workers.
        WildflowerError: its ServerApp failed.
        Interrupted: the user stopped it.
    """
    workers = min(nodes, cores()) if workers is None else workers
    for option, number in (("--num-supernodes", nodes), ("--workers", workers)):
        if number < 1:
            raise InputError(f"{option} {number}: expected 1 or more")
    with tempfile.TemporaryDirectory(prefix="wildflower-") as folder:
        order, report = Path(folder, "order.json"), Path(folder, "report.json")
        told = {"nodes": nodes, "workers": workers, "began": time.time()}
        order.write_text(json.dumps({**asdict(app), "folder": str(app.folder), **told}))
        code = _wait(order, report, quiet_stdout=quiet_stdout)
        if not report.exists():
            raise WildflowerError(f"{app.folder}: the app's process ended with exit code {code}")
        return _checked(app, json.loads(report.read_text()), workers)


def _wait(order: Path, report: Path, *, quiet_stdout: bool) -> int:
    command = [sys.executable, "-P", "-c", _START, str(_ROOT), str(order), str(report)]
    stdout = sys.stderr.fileno() if quiet_stdout else None
    environment = _environment(os.environ)
    # In a group of its own it is interrupted by us, once, and not by the terminal as well.
    with subprocess.Popen(command, env=environment, stdout=stdout, process_group=0) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            process.kill()
            raise Interrupted("interrupted; a Flower app cannot be resumed") from None


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of the app's process; strings hash alike in every run."""
    kept = {key: value for key, value in given.items() if key != "PYTHONPATH"}
    return {"PYTHONHASHSEED": "0", **kept, **_QUIET}


def _checked(app: FlowerApp, report: dict[str, Any], workers: int) -> dict[str, Any]:
    status, reason = report["status"], report.pop("reason", "")
    if status == "interrupted":
        raise Interrupted("interrupted; a Flower app cannot be resumed")
    if status == "unusable":
        raise InputError(f"{app.folder}: {reason}")
    if status == "failed":
        raise WildflowerError(f"{app.folder}: {reason}")
    return {"app": str(app.folder), "workers": workers, **report}
