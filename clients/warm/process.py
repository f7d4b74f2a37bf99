"""The worker's process, from outside: asked, watched, and killed when it must be."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from clients.warm.frames import Closed, receive_frame, send_frame
from clients.warm.logs import open_log
from clients.warm.worker import DONE, READY, UNFIT
from shared_models.errors import WildflowerError

LOAD_S = 600.0
_LOOK_S = 0.1
_MB = 2**20


class Died(WildflowerError):
    """The worker is gone, cannot begin, or had to go."""


class Refused(WildflowerError):
    """The worker says why it has no answer; it lives on."""


class Unwanted(WildflowerError):
    """Who waited for the worker to be ready does not any more; the worker goes on."""


class Unfit(WildflowerError):
    """The worker cannot begin, and says why: its data are not what they should be."""


class WorkerProcess:
    """A worker that was started; `memory_mb` is what it may take, if anything bounds it."""

    def __init__(self, hosting_json: str, log: Path, memory_mb: int | None) -> None:
        self._end, theirs = socket.socketpair()
        self._memory_mb = memory_mb
        self._first = b""
        self._fault = ""
        self._began = time.monotonic()
        told = [str(theirs.fileno()), str(os.getpid())]
        with open_log(log) as out, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "clients.warm.worker", *told],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._send(hosting_json.encode())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait(self, is_wanted: Callable[[], bool]) -> None:
        """Returns when the worker has all that it needs; raises `Died`, `Unfit` or `Unwanted`."""
        if not self._first:
            self._first = self._receive(lambda: is_wanted() and not self._is_late())
        if not self._first:
            if self._is_late():
                raise Died(f"the trainer's data was not read within {LOAD_S:g} s")
            raise Unwanted("nobody waits for the trainer any more")
        if self._first != READY:
            kind, told = self._first[:1], self._first[1:].decode(errors="replace")
            raise Unfit(told) if kind == UNFIT else Died(f"the trainer cannot begin: {told}")

    def ask(self, frame: bytes, is_wanted: Callable[[], bool]) -> bytes:
        """Returns a ready worker's answer; raises `Died`, or `Refused` with the worker's reason."""
        self._send(frame)
        answer = self._receive(is_wanted)
        if not answer:
            raise Died("nobody waits for the trainer's answer any more")
        if answer[:1] != DONE:
            raise Refused(answer[1:].decode(errors="replace"))
        return answer[1:]

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._end.close()

    def _send(self, frame: bytes) -> None:
        # A worker that hangs takes no frame either; when it is killed, this thread ends.
        threading.Thread(target=_send, args=(self._end, frame), daemon=True).start()

    def _is_late(self) -> bool:
        return time.monotonic() - self._began > LOAD_S

    def _receive(self, is_wanted: Callable[[], bool]) -> bytes:
        """Returns the next frame, which has a first byte, or nothing when it is not wanted."""
        while not select.select([self._end], [], [], _LOOK_S)[0]:
            if not is_wanted():
                return b""
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
            # At once: who is told of it may come hours later.
            self._process.kill()
            self._fault = f"the trainer used {used:.0f} MB, more than --memory-mb {self._memory_mb}"
            raise Died(self._fault)

    def _death(self) -> str:
        if self._fault:
            return self._fault
        code = self._process.wait()
        return f"the trainer died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"


def _send(end: socket.socket, frame: bytes) -> None:
    with contextlib.suppress(Closed):  # who waits for the answer is told
        send_frame(end, frame)
