"""Flower's processes on a server: how each is started, and how it is noticed that one ended."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from clients.warm.logs import open_log
from deploy.fleet.connection import Connection
from deploy.fleet.environment import flower_environment
from deploy.fleet.home import ServerHome
from deploy.fleet.processes import reap
from deploy.fleet.superlink import KEYS_VARIABLE, STATE_VARIABLE


def start(
    home: ServerHome, module: str, options: list[str], log: Path | None = None
) -> subprocess.Popen[bytes]:
    """Starts one of our modules that run Flower's processes; what it says goes to the log."""
    # Of its own session: a Ctrl-C in the terminal is for us to pass on, in the right order.
    with open_log(log or home.log) as file:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", f"deploy.fleet.{module}", *options],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=_environment(home),
            umask=0o077,
            start_new_session=True,
        )


def superexec_options(home: ServerHome, connection: Connection) -> list[str]:
    """Returns the options of a SuperExec."""
    options = ["--runtime-api-address", connection.address, *secret_options(home)]
    if connection.ca is None:
        return [*options, "--insecure"]
    return [*options, "--root-certificates", str(connection.ca)]


def secret_options(home: ServerHome) -> list[str]:
    """Returns the option by which SuperLink and SuperExec know each other."""
    return ["--superexec-auth-secret-file", str(home.superexec_secret)]


def ended(processes: Mapping[str, subprocess.Popen[bytes]]) -> str | None:
    """Returns which of the processes ended, and how; None while all run."""
    codes = reap()
    found = {name: codes.get(process.pid) for name, process in processes.items()}
    for name, process in processes.items():
        process.returncode = found[name]
    told = (
        f"the {name} ended ({_ending(code)})" for name, code in found.items() if code is not None
    )
    return next(told, None)


def changed(path: Path) -> int:
    """Returns when a file, or what a folder has, was changed; 0 where it is not there."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def _environment(home: ServerHome) -> dict[str, str]:
    environment = flower_environment(home.flower)
    # Whom uvicorn believes about where a request comes from is not for the caller to say.
    environment.pop("FORWARDED_ALLOW_IPS", None)
    keys = {} if home.keys is None else {KEYS_VARIABLE: str(home.keys.absolute())}
    return {**environment, STATE_VARIABLE: str(home.path.absolute()), **keys}


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
