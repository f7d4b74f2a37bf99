"""A process that runs an untrusted file: what kills it, or hangs it, becomes one line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared_models.errors import ExportError, one_line

_WORKER = Path(__file__).with_name("worker.py")
_HEADER_BYTES, _ANSWER_BYTES = 1 << 16, 1 << 30
_NOTHING = np.empty(0, np.float32)
_STARVED = (
    "MemoryError",
    "bad_alloc",
    "Failed to allocate memory",
    "Cannot allocate memory",
    "failed to map segment",
)
MEMORY_MB = 1000
_THREAD_MB, _ARENAS = 10, 4  # a thread's stack; by default malloc reserves 64 MB for each, too


class Child:
    """A worker process with one file open in one runtime.

    Every question has a deadline. Raises `ExportError`, one line, when the process does not answer
    as it should; then it is gone.
    """

    def __init__(self, python: Path, runtime: str, path: Path, threads: int) -> None:
        self._where = f"{path}: {runtime}"
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        # Twenty times the file: weights as they lie, unpacked, and what flows between them.
        self._megabytes = MEMORY_MB + 20 * path.stat().st_size // 1_000_000 + _THREAD_MB * threads
        arguments = [runtime, str(path.absolute()), str(threads), str(self._megabytes)]
        self._process = subprocess.Popen(
            [str(python), str(_WORKER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=_environment(python),
            start_new_session=True,  # Ctrl-C is for us; we end it
        )

    def ask(
        self, question: Mapping[str, Any] | None, x: NDArray[Any] = _NOTHING, *, deadline_s: float
    ) -> tuple[dict[str, Any], NDArray[Any]]:
        """Returns the answer, a header and an array; without a question, what it says first."""
        with self._until(deadline_s) as late:
            try:
                if question is not None:
                    self._send(question, x)
                answer = self._receive()
            except (EOFError, OSError):
                raise self._died(deadline_s if late.is_set() else None) from None
        if "error" in answer[0]:
            raise self._failed(str(answer[0]["error"]), str(answer[0].get("kind")))
        return answer

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            with contextlib.suppress(OSError):  # what was not flushed is not missed
                if stream is not None:
                    stream.close()
        self._process.wait()

    @contextlib.contextmanager
    def _until(self, deadline_s: float) -> Iterator[threading.Event]:
        """Kills the process when the block takes longer; yields whether that happened."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(deadline_s, kill)
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()

    def _send(self, question: Mapping[str, Any], x: NDArray[Any]) -> None:
        stream = self._process.stdin
        assert stream is not None  # noqa: S101  # we asked for a pipe
        head = json.dumps({**question, "dtype": x.dtype.str, "shape": x.shape}).encode()
        stream.write(struct.pack("<QQ", len(head), x.nbytes) + head)
        stream.write(np.ascontiguousarray(x).tobytes())
        stream.flush()

    def _receive(self) -> tuple[dict[str, Any], NDArray[Any]]:
        head, body = struct.unpack("<QQ", self._read(16))
        if head > _HEADER_BYTES or body > _ANSWER_BYTES:
            raise ExportError(f"{self._where} answers with more than is sensible")
        header, content = self._read(head), self._read(body)
        try:
            told = json.loads(header)
            dtype, shape = np.dtype(told["dtype"]), told["shape"]
            if dtype.kind not in "fi" or math.prod(shape) * dtype.itemsize != body:
                raise ValueError("another size")
            return told, np.frombuffer(content, dtype).reshape(shape)
        except (ValueError, TypeError, KeyError):
            raise ExportError(f"{self._where} answers with something else than numbers") from None

    def _read(self, count: int) -> bytes:
        stream = self._process.stdout
        assert stream is not None  # noqa: S101  # we asked for a pipe
        content = stream.read(count)
        if len(content) < count:
            raise EOFError
        return content

    def _failed(self, error: str, kind: str) -> ExportError:
        """Returns what to raise for an error that the runtime raised."""
        if any(word in f"{kind} {error}" for word in _STARVED):
            return self._starved()
        return ExportError(f"{self._where} cannot run it: {one_line(error or kind)}")

    def _died(self, deadline_s: float | None) -> ExportError:
        """Returns what to raise for a process that is gone."""
        if deadline_s is not None:
            return ExportError(f"{self._where} did not answer within {deadline_s:.0f} s")
        code = self._process.wait()
        said = self._last_words()
        if any(word in said for word in _STARVED):
            return self._starved()
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        return ExportError(f"{self._where} {how}" + (f": {said}" if said else ""))

    def _starved(self) -> ExportError:
        return ExportError(
            f"{self._where} needs more than the {self._megabytes} MB that it may use"
        )

    def _last_words(self) -> str:
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - 4096))
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return one_line(lines[-1]) if lines else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment(python: Path) -> dict[str, str]:
    """Returns our environment, without what is for our interpreter when it is for another."""
    kept = dict(os.environ)
    if str(python) != sys.executable:
        for name in ("PYTHONPATH", "PYTHONHOME"):
            kept.pop(name, None)
    ours = {"OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return {**kept, **ours, "MALLOC_ARENA_MAX": str(_ARENAS)}
