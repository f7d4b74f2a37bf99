"""The worker's process, from outside: asked, watched, and killed when it must be."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from clients.warm.frames import Closed, receive_frame, send_frame
from clients.warm.worker import DONE
from shared_models.errors import WildflowerError

_LOOK_S = 0.1
_MB = 2**20


class Died(WildflowerError):
    """The worker is gone, or had to go."""


class Refused(WildflowerError):
    """The worker says why it has no answer; it lives on."""


class WorkerProcess:
    """A worker that was started; `memory_mb` is what it may take, if anything bounds it."""

    def __init__(self, hosting_json: str, log: Path, memory_mb: int | None) -> None:
        self._end, theirs = socket.socketpair()
        self._memory_mb = memory_mb
        self._is_ready = False
        descriptor = str(theirs.fileno())
        with log.open("ab") as out, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "clients.warm.worker", descriptor, hosting_json],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait(self, is_wanted: Callable[[], bool]) -> None:
        """Returns when the worker has all that it needs; raises `Died`."""
        if not self._is_ready:
            self._receive(is_wanted)
            self._is_ready = True

    def ask(self, frame: bytes, is_wanted: Callable[[], bool]) -> bytes:
        """Returns the answer to a frame; raises `Died`, or `Refused` with the worker's reason."""
        self.wait(is_wanted)
        try:
            send_frame(self._end, frame)
        except Closed:
            raise Died(self._death()) from None
        answer = self._receive(is_wanted)
        if answer[:1] != DONE:
            raise Refused(answer[1:].decode(errors="replace"))
        return answer[1:]

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._end.close()

    def _receive(self, is_wanted: Callable[[], bool]) -> bytes:
        while not select.select([self._end], [], [], _LOOK_S)[0]:
            if not is_wanted():
                raise Died("nobody waits for its answer any more")
            self._check_memory()
        try:
            return receive_frame(self._end)
        except Closed:
            raise Died(self._death()) from None

    def _check_memory(self) -> None:
        if self._memory_mb is None:
            return
        try:
            used = psutil.Process(self.pid).memory_info().rss / _MB
        except psutil.Error:
            return  # it is gone, which the socket tells
        if used > self._memory_mb:
            raise Died(f"the trainer used {used:.0f} MB, more than --memory-mb {self._memory_mb}")

    def _death(self) -> str:
        code = self._process.wait()
        return f"the trainer died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
