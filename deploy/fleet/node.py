"""Flower's processes on a device: a SuperNode with its SuperExec, and what they say."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from clients.warm.logs import open_log
from deploy.fleet.device import Device
from deploy.fleet.disk import Tail, bound_log, prune_apps
from deploy.fleet.environment import flower_environment
from deploy.fleet.home import write_secret
from shared_models.errors import one_line

_MB = 2**20
_TIDY_S = 60.0
_END_S = 5.0
# What Flower says when the server knows no such key, or a node with this key is online.
_NOT_ADMITTED = "Failed to activate SuperNode"
_CONNECTED = "SuperNode ID"
_FLOWERS_EXIT = "Exit Code: "
_REMEMBERED = 100_000  # characters of what Flower's processes said


class Node:
    """A SuperNode with its SuperExec, and what they say; a context manager."""

    def __init__(self, device: Device, place: Path) -> None:
        self._device, self._place = device, place
        self._tail = Tail(device.log)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._said = ""
        self._tidied = -_TIDY_S
        self.is_connected = False

    def __enter__(self) -> Self:
        try:
            for name, module in _commands(self._device, self._place).items():
                self._processes[name] = _popen(self._device, module)
        except BaseException:  # one without the other is of no use
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            _end(process)

    def look(self) -> None:
        """Reads on, and keeps the state folder within its bound."""
        self._hear(self._tail.read())
        if time.monotonic() - self._tidied >= _TIDY_S:
            self._hear(_tidy(self._device, self._tail))
            self._tidied = time.monotonic()

    def fault(self) -> str | None:
        """Returns why one of the two ended; None while both are there."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                self._hear(self._tail.read())  # its last words
                return _why(name, process.returncode, self._said)
        return None

    def _hear(self, new: str) -> None:
        self._said = (self._said + new)[-_REMEMBERED:]
        self.is_connected = self.is_connected or _CONNECTED in self._said


def _tidy(device: Device, tail: Tail) -> str:
    """Keeps the state folder within its bound: logs, with their older halves, and bundles.

    The other half of it is for what clients keep, which the trainer sees to. Returns what came last
    in Flower's log, if that began anew.
    """
    room = device.max_disk_mb * _MB // 2
    for log in (device.trainer_log, device.own_log):
        bound_log(log, room // 12, kept=room // 12)
    prune_apps(device.flower_home, room // 2)
    return tail.bound(room // 12, kept=room // 12)


def _commands(device: Device, place: Path) -> dict[str, list[str]]:
    """Returns what starts a SuperNode, and the SuperExec that starts its ClientApps.

    They share a secret, so that nobody else on this device is given the node's messages.
    """
    port = _free_port()
    secret = device.state / "superexec.secret"
    write_secret(secret, secrets.token_bytes(32))
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
    return {"SuperNode": node, "SuperExec": executor}


def _popen(device: Device, module: list[str]) -> subprocess.Popen[bytes]:
    # Of its own session: a Ctrl-C in the terminal is for us to pass on, in the right order.
    with open_log(device.log) as log:
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
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _why(name: str, code: int, said: str) -> str:
    """Returns why one of Flower's processes ended, in our words where they are better."""
    if _NOT_ADMITTED in said:
        return (
            "the server does not admit this device: it still holds it for connected, one to two "
            "minutes after it was cut off or killed; or its key is not registered there "
            "(`wildflower server add-client`)"
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
