"""A device that stays: a warm trainer and a SuperNode, started anew whenever one of them ends.

Whoever runs this may forget it: it goes on trying for as long as it is there, under the same
identity, and says one line when something changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clients.warm.service import Limits, TrainerService
from deploy.fleet.connection import Connection
from deploy.fleet.disk import bound_log, prune_apps
from deploy.fleet.environment import flower_environment
from deploy.fleet.probe import fault_of
from deploy.fleet.processes import adopt_orphans, end_descendants
from deploy.fleet.stopping import Stop, stop_on_signals
from shared_models.errors import InputError, Interrupted, one_line
from shared_models.files import locked

_MB = 2**20
_LONGEST_BACKOFF_S = 60.0
_STABLE_S = 60.0
_STOP_S = 10.0
_TIDY_S = 60.0
_LONGEST_SOCKET = 100  # bytes; the system's bound on the path of a Unix socket is a little more
# What Flower says when the server knows no such key, or a node with this key is online.
_NOT_ADMITTED = "Failed to activate SuperNode"
_FLOWERS_EXIT = "Exit Code: "

Say = Callable[[str], None]


@dataclass(frozen=True)
class Device:
    """What a device is started with.

    Attributes:
        connection: The server.
        key: The node's private key; None on a server without TLS.
        state: The folder of this device's own files.
        hosting_json: Which clients it hosts and where their data is.
        limits: What a training may take.
        max_disk_mb: What the state folder may take.
    """

    connection: Connection
    key: Path | None
    state: Path
    hosting_json: str
    limits: Limits
    max_disk_mb: int

    @property
    def flower_home(self) -> Path:
        """Where Flower unpacks bundles."""
        return self.state / "flower"

    @property
    def log(self) -> Path:
        """What Flower's processes say."""
        return self.state / "supernode.log"

    @property
    def trainer_log(self) -> Path:
        """What the trainer says."""
        return self.state / "trainer.log"

    @property
    def own_log(self) -> Path:
        """What the terminal is told, with the time."""
        return self.state / "client.log"


def run_device(device: Device, say: Say) -> None:
    """Runs a device until SIGTERM (returns) or Ctrl-C (`Interrupted`)."""
    with _held(device.state), _socket_place(device.state) as place, stop_on_signals() as stop:
        adopt_orphans()
        say = _noted(device.own_log, say)
        trainer = TrainerService(place, device.hosting_json, device.trainer_log, device.limits)
        try:
            with trainer:
                say("the trainer reads its data")
                trainer.load(lambda: not stop.within(0))
                _Supervisor(device, place, say, stop).run()
        finally:
            end_descendants(_STOP_S)
        if stop.interrupted:
            raise Interrupted("the client was stopped")
        say("stopped")


def _noted(log: Path, say: Say) -> Say:
    """Returns what says a line and keeps it: nobody may watch the terminal."""

    def noted(line: str) -> None:
        say(line)
        with contextlib.suppress(OSError), log.open("a") as file:  # a full disk stops no device
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")

    return noted


class _Supervisor:
    """One SuperNode after the other, until it is stopped."""

    def __init__(self, device: Device, place: Path, say: Say, stop: Stop) -> None:
        self._device, self._place, self._say, self._stop = device, place, say, stop
        self._told = ""

    def run(self) -> None:
        """Returns when it was asked to stop."""
        backoff = 1.0
        while not self._stop.within(0):
            began = time.monotonic()
            fault = fault_of(self._device.connection)
            try:
                fault = fault or self._watch()
            except OSError as error:  # a full disk may have room again later
                fault = f"{error.filename or self._device.state}: {error.strerror}"
            if fault is None:
                return
            backoff = 1.0 if time.monotonic() - began > _STABLE_S else backoff
            self._tell(f"{fault}; trying again")
            # Devices that lost one server would all come back at one moment.
            self._stop.within(backoff * random.uniform(0.8, 1.2))  # noqa: S311
            backoff = min(2 * backoff, _LONGEST_BACKOFF_S)

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._told = line
            self._say(line)

    def _watch(self) -> str | None:
        """Runs a SuperNode; returns why it ended, or None when the device is to stop."""
        seen = self._device.log.stat().st_size if self._device.log.exists() else 0
        node, executor = _start(self._device, self._place)
        is_connected, tidied = False, -_TIDY_S
        try:
            while not self._stop.within(0.5):
                if not is_connected and "SuperNode ID" in _said(self._device.log, seen):
                    is_connected = True
                    self._tell(f"connected to {self._device.connection.address}")
                for name, process in {"SuperNode": node, "SuperExec": executor}.items():
                    if process.poll() is not None:
                        return _why(name, process.returncode, _said(self._device.log, seen))
                if time.monotonic() - tidied >= _TIDY_S:
                    _tidy(self._device)
                    tidied = time.monotonic()
            return None
        finally:
            for process in (node, executor):
                _end(process)


def _tidy(device: Device) -> None:
    """Keeps the state folder within its bound: logs, with their older halves, and bundles."""
    room = device.max_disk_mb * _MB
    for log in (device.log, device.trainer_log, device.own_log):
        bound_log(log, room // 12, kept=room // 12)
    prune_apps(device.flower_home, room // 2)


def _start(device: Device, place: Path) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """Starts a SuperNode, and the SuperExec that starts its ClientApps.

    They share a secret, so that nobody else on this device is given the node's messages.
    """
    port = _free_port()
    secret = device.state / "superexec.secret"
    _write_secret(secret)
    own = ["--superexec-auth-secret-file", str(secret)]
    node = ["-m", "deploy.fleet.supernode", "--superlink", device.connection.address]
    node += ["--host", "127.0.0.1", "--port", str(port), "--isolation", "process", *own]
    node += ["--node-config", f"trainer={json.dumps(f'unix:{place}')}"]
    if device.connection.ca is None:
        node += ["--insecure"]
    else:
        node += ["--root-certificates", str(device.connection.ca)]
        node += ["--auth-supernode-private-key", str(device.key)]
    executor = ["-m", "deploy.fleet.superexec", "--insecure", *own]
    executor += ["--runtime-api-address", f"127.0.0.1:{port}"]
    return _popen(device, node), _popen(device, executor)


def _popen(device: Device, module: list[str]) -> subprocess.Popen[bytes]:
    # Of its own session: a Ctrl-C in the terminal is for us to pass on, in the right order.
    with device.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", *module],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=flower_environment(device.flower_home),
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S / 2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _said(log: Path, since: int) -> str:
    with log.open("rb") as file:
        file.seek(since if since <= log.stat().st_size else 0)  # it was begun anew
        return file.read().decode(errors="replace")


def _why(name: str, code: int, said: str) -> str:
    """Returns why one of Flower's processes ended, in our words where they are better."""
    if _NOT_ADMITTED in said:
        return (
            "the server does not admit this device: its key is not registered there "
            "(`wildflower server add-client`), or the server still holds it for connected"
        )
    _, found, after = said.rpartition(_FLOWERS_EXIT)
    reasons = after.splitlines()[1:2] if found else []
    if reasons:
        return f"the {name} ended: {one_line(reasons[0])}"
    return f"the {name} died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _write_secret(path: Path) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(32))


@contextlib.contextmanager
def _held(state: Path) -> Iterator[None]:
    """Makes the state folder, for this user alone, and keeps other clients out of it."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = state / "lock"
    lock.touch(mode=0o600)
    with locked(lock) as free:
        if not free:
            raise InputError(f"--state {state}: another client runs on this folder; stop it first")
        yield


@contextlib.contextmanager
def _socket_place(state: Path) -> Iterator[Path]:
    """Yields where the trainer's socket is to be: in the state folder, if its path is not long."""
    place = (state / "trainer.sock").absolute()
    if len(os.fsencode(place)) <= _LONGEST_SOCKET:
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="wildflower-") as folder:
        yield Path(folder) / "trainer.sock"
