"""A device that stays: a warm trainer and a SuperNode, started anew whenever one of them ends.

Whoever runs this may forget it: it goes on trying for as long as it is there, under the same
identity, and says one line when something changes.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from clients.events import Connected
from clients.warm.diary import Diary
from clients.warm.logs import open_log
from clients.warm.process import Died
from clients.warm.service import TrainerService
from deploy.fleet.device import Device
from deploy.fleet.disk import full_disk
from deploy.fleet.health import Health
from deploy.fleet.node import Node
from deploy.fleet.probe import fault_of
from deploy.fleet.processes import adopt_orphans, end_descendants
from deploy.fleet.stopping import Stop, stop_on_signals
from shared_models.errors import InputError, Interrupted
from shared_models.files import locked

# A device is to be back soon after its server, and after Flower gave up an old one of its nodes.
_LONGEST_BACKOFF_S = 10.0
_LONGEST_LOAD_BACKOFF_S = 60.0  # reading a gateway's data is work
_STABLE_S = 60.0
_STOP_S = 10.0
_LONGEST_SOCKET = 100  # bytes; the system's bound on the path of a Unix socket is a little more

Say = Callable[[str], None]


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
        with Node(self._device, self._place) as node:
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
