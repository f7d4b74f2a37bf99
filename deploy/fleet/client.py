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
from typing import Self

from clients.events import Connected, Observer, nobody
from clients.warm.diary import Diary
from clients.warm.logs import open_log
from clients.warm.process import Died
from clients.warm.service import Limits, TrainerService
from deploy.fleet.connection import Connection
from deploy.fleet.disk import Tail, bound_log, full_disk, prune_apps
from deploy.fleet.environment import flower_environment
from deploy.fleet.health import Health, HealthAddress
from deploy.fleet.probe import fault_of
from deploy.fleet.processes import adopt_orphans, end_descendants
from deploy.fleet.stopping import Stop, stop_on_signals
from shared_models.errors import InputError, Interrupted, one_line
from shared_models.files import locked

_MB = 2**20
# A device is to be back soon after its server, and after Flower gave up an old one of its nodes.
_LONGEST_BACKOFF_S = 10.0
_LONGEST_LOAD_BACKOFF_S = 60.0  # reading a gateway's data is work
_STABLE_S = 60.0
_STOP_S = 10.0
_TIDY_S = 60.0
_LONGEST_SOCKET = 100  # bytes; the system's bound on the path of a Unix socket is a little more
# What Flower says when the server knows no such key, or a node with this key is online.
_NOT_ADMITTED = "Failed to activate SuperNode"
_CONNECTED = "SuperNode ID"
_FLOWERS_EXIT = "Exit Code: "
_REMEMBERED = 100_000  # characters of what Flower's processes said

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
        health: Where gRPC's health service listens; None for none.
        observe: Who watches it.
    """

    connection: Connection
    key: Path | None
    state: Path
    hosting_json: str
    limits: Limits
    max_disk_mb: int
    health: HealthAddress | None = None
    observe: Observer = nobody

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


def prepare_state(state: Path) -> None:
    """Makes the state folder, for this user alone; `InputError` when it cannot be one."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _lock(state).touch(mode=0o600)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--state {state}: is or lies in a file; name a folder") from None
    except OSError as error:
        raise InputError(f"--state {state}: cannot be written: {error.strerror}") from None


def run_device(device: Device, say: Say) -> None:
    """Runs a device, whose state folder is prepared, until SIGTERM (returns) or Ctrl-C.

    Raises `InputError` when its data is unfit, `Interrupted` after Ctrl-C.
    """
    with (
        _held(device.state),
        _socket_place(device.state) as place,
        Health(device.health) as health,
        stop_on_signals() as stop,
    ):
        adopt_orphans()
        say = _noted(device.own_log, say)
        diary = Diary(say, device.observe)
        log, limits = device.trainer_log, device.limits
        trainer = TrainerService(place, device.hosting_json, log, limits, diary)
        try:
            with trainer:
                say("the trainer reads its data")
                _load(trainer, say, stop, health)
                _Supervisor(device, place, say, stop, health).run()
        finally:
            end_descendants(_STOP_S)
        if stop.interrupted:
            raise Interrupted("the client was stopped")
        say("stopped")


def _noted(log: Path, say: Say) -> Say:
    """Returns what says a line and keeps it: nobody may watch the terminal."""

    def noted(line: str) -> None:
        say(line)
        with contextlib.suppress(OSError), open_log(log) as file:  # a full disk stops no device
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n".encode())

    return noted


def _changes(say: Say) -> Say:
    """Returns what says a line unless it said the same just before."""
    told = ""

    def tell(line: str) -> None:
        nonlocal told
        if line != told:
            told = line
            say(line)

    return tell


class Backoff:
    """Pauses that grow up to a longest one."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self.reset()

    def reset(self) -> None:
        """Begins with a short pause again."""
        self._next_s = 1.0

    def pause(self, stop: Stop) -> None:
        """Waits, or less when it is to stop."""
        # Devices that lost one server would all come back at one moment.
        stop.within(self._next_s * random.uniform(0.5, 1.0))  # noqa: S311
        self._next_s = min(2 * self._next_s, self._longest_s)


def _load(trainer: TrainerService, say: Say, stop: Stop, health: Health) -> None:
    """Returns when the trainer has its data, or when the device is to stop.

    Memory that others took now may be free later: only data that is unfit ends it (`InputError`).
    """
    backoff, tell = Backoff(_LONGEST_LOAD_BACKOFF_S), _changes(say)

    def is_wanted() -> bool:  # which is asked all the time
        health.beat(ready=False)
        return not stop.within(0)

    while is_wanted():
        try:
            trainer.load(is_wanted)
            return
        except Died as error:
            tell(f"{error}; trying again")
        backoff.pause(stop)
        trainer.renew()


class _Supervisor:
    """One SuperNode after the other, until it is stopped."""

    def __init__(self, device: Device, place: Path, say: Say, stop: Stop, health: Health) -> None:
        self._device, self._place, self._stop, self._health = device, place, stop, health
        self._tell = _changes(say)
        self._is_full = False

    def run(self) -> None:
        """Returns when it was asked to stop."""
        backoff = Backoff(_LONGEST_BACKOFF_S)
        while not self._stop.within(0):
            began = time.monotonic()
            fault = fault_of(self._device.connection)
            try:
                fault = fault or self._watch()
            except OSError as error:  # a full disk may have room again later
                fault = f"{error.filename or self._device.state}: {error.strerror}"
            self._beat(ready=False)
            if fault is None:
                return
            if time.monotonic() - began > _STABLE_S:
                backoff.reset()
            self._tell(f"{fault}; trying again")
            backoff.pause(self._stop)

    def _watch(self) -> str | None:
        """Runs a SuperNode; returns why it ended, or None when the device is to stop."""
        with _Node(self._device, self._place) as node:
            is_connected = False
            while not self._stop.within(0.5):
                node.look()
                self._look_at_disk()
                if not is_connected and node.is_connected:
                    is_connected = True
                    self._tell(f"connected to {self._device.connection.address}")
                if fault := node.fault():
                    return fault
                self._beat(ready=is_connected)
        return None

    def _beat(self, *, ready: bool) -> None:
        self._health.beat(ready=ready)
        self._device.observe(Connected(ready))

    def _look_at_disk(self) -> None:
        full = full_disk(self._device.state)
        if full and not self._is_full:
            self._tell(f"{full}: until then trainings may fail")
        self._is_full = full is not None


class _Node:
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
        process.wait(_STOP_S / 2)
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


def _write_secret(path: Path) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(32))


def _lock(state: Path) -> Path:
    return state / "lock"


@contextlib.contextmanager
def _held(state: Path) -> Iterator[None]:
    """Keeps other clients out of the state folder."""
    with locked(_lock(state)) as free:
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
