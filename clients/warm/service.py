"""The service beside a SuperNode: a Unix socket for this user, one worker behind it."""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from clients.warm.diary import Diary, Work
from clients.warm.process import Died, Refused, Unfit, Unwanted, WorkerProcess
from clients.warm.protocol import BEGUN, METHOD, SERVICE, VERSION, Incomplete, TooLarge, cut, join
from clients.warm.trainer_pb2 import Chunk, Header
from shared_models.errors import InputError, WildflowerError
from shared_models.verbs import LEFT_OUT, TRAIN_BLOCK

_WHEN_S = 10.0
_CALLS = 4  # one trains; the others wait, or ask after its health
_OUTCOMES = {
    grpc.StatusCode.FAILED_PRECONDITION: "declined",
    grpc.StatusCode.INTERNAL: "refused",
    grpc.StatusCode.ABORTED: "died",
    grpc.StatusCode.UNAVAILABLE: "unwanted",
}


@dataclass(frozen=True)
class Limits:
    """What a training may take, and the command that says whether it may begin."""

    memory_mb: int | None = None
    when: str | None = None

    def __post_init__(self) -> None:
        if self.when is None:
            return
        try:
            words = shlex.split(self.when)
        except ValueError as error:
            raise InputError(f"--when {self.when}: {str(error).lower()}") from None
        if not words:
            raise InputError("--when: expected a command")


class _NoAnswer(WildflowerError):
    """Why there is none, in gRPC's terms and in words."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class TrainerService:
    """Answers messages one after another, and says what it does; a context manager."""

    def __init__(
        self, place: Path, hosting_json: str, log: Path, limits: Limits, diary: Diary
    ) -> None:
        self._hosting_json, self._log, self._limits = hosting_json, log, limits
        self._diary = diary
        self._busy = threading.Lock()
        self._ended = threading.Event()
        self._health = health.HealthServicer()
        self._start()
        self._server = grpc.server(ThreadPoolExecutor(_CALLS))
        handler = grpc.stream_stream_rpc_method_handler(
            self._answer,
            request_deserializer=Chunk.FromString,
            response_serializer=Chunk.SerializeToString,
        )
        name = METHOD.rsplit("/", 1)[1]
        handlers = grpc.method_handlers_generic_handler(SERVICE, {name: handler})
        self._server.add_generic_rpc_handlers((handlers,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _bind(self._server, place)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # nobody is wanted any more, so that whoever is busy lets go
        self._server.stop(grace=None).wait()
        with self._busy:
            self._worker.kill()

    @property
    def worker_pid(self) -> int:
        """The process id of the worker at the moment."""
        return self._worker.pid

    def load(self, is_wanted: Callable[[], bool]) -> None:
        """Returns when the worker has its data, or when that is not wanted any more.

        Raises `InputError` that says what is wrong with the data, `Died` when the worker is gone;
        then `renew` starts another.
        """
        while is_wanted():
            if not self._busy.acquire(timeout=0.1):
                continue
            try:
                self._worker.wait(is_wanted)
                break
            except Unfit as error:
                raise InputError(str(error)) from None
            except Unwanted:
                return
            finally:
                self._busy.release()

    def renew(self) -> None:
        """Starts the worker anew."""
        with self._busy:
            self._renew()

    def _start(self) -> None:
        self._tell(is_ready=False)
        self._worker = WorkerProcess(self._hosting_json, self._log, self._limits.memory_mb)
        self._diary.started(self._worker.pid)
        threading.Thread(target=self._wait_for, args=(self._worker,), daemon=True).start()

    def _wait_for(self, worker: WorkerProcess) -> None:
        with self._busy:
            try:
                worker.wait(lambda: worker is self._worker and not self._ended.is_set())
                if worker is self._worker:
                    self._tell(is_ready=True)
            except (Died, Unfit, Unwanted, OSError, ValueError):
                return  # who asks next is told

    def _tell(self, *, is_ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self._health.set("", status.SERVING if is_ready else status.NOT_SERVING)

    def _answer(self, chunks: Iterator[Chunk], context: Any) -> Iterator[Chunk]:
        try:
            header, data = _joined(chunks)
            answer = self._turn(header, data, context)
            if answer is not None:
                yield from cut(Header(version=VERSION, verb=header.verb), answer)
        except TooLarge as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except _NoAnswer as error:
            context.abort(error.code, str(error))

    def _turn(self, header: Header, data: bytes, context: Any) -> bytes | None:
        """Returns the answer to a message when its turn has come, None if nobody waits for it."""
        if header.verb == LEFT_OUT:
            self._diary.left_out(header, data.decode(errors="replace"))
            return b""
        while not self._busy.acquire(timeout=0.1):
            if not self._is_wanted(context):  # nobody's training is to blame
                return None
        try:
            if not self._is_wanted(context):
                return None
            with self._diary.entry(header), self._diary.work(header) as work:
                return self._worked(Chunk(header=header, data=data), context, work)
        finally:
            self._busy.release()

    def _worked(self, message: Chunk, context: Any, work: Work) -> bytes:
        """Returns the answer, and notes what came of the message."""
        try:
            if message.header.verb == TRAIN_BLOCK and (no := _refusal(self._limits.when)):
                raise _NoAnswer(grpc.StatusCode.FAILED_PRECONDITION, no)
            answer = self._asked(message, context)
        except _NoAnswer as error:
            work.outcome = _OUTCOMES[error.code]
            raise
        work.outcome, work.bytes_up = "answered", len(answer)
        return answer

    def _asked(self, message: Chunk, context: Any) -> bytes:
        def is_wanted() -> bool:
            return self._is_wanted(context)

        try:
            self._worker.wait(is_wanted)
            context.send_initial_metadata(BEGUN)
            return self._worker.ask(message.SerializeToString(), is_wanted)
        except Unwanted as error:
            raise _NoAnswer(grpc.StatusCode.UNAVAILABLE, str(error)) from None
        except Refused as error:
            raise _NoAnswer(grpc.StatusCode.INTERNAL, str(error)) from None
        except Unfit as error:
            self._renew()  # the data may be there when it is asked again
            raise _NoAnswer(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        except Died as error:
            self._renew()
            told = f"{error}; it is started anew"
            raise _NoAnswer(grpc.StatusCode.ABORTED, told) from None

    def _is_wanted(self, context: Any) -> bool:
        return bool(context.is_active()) and not self._ended.is_set()

    def _renew(self) -> None:
        if not self._ended.is_set():  # else who ended it kills the worker, and no other follows
            self._worker.kill()
            self._start()


def _joined(chunks: Iterator[Chunk]) -> tuple[Header, bytes]:
    """Returns a whole message of our version of the protocol; `TooLarge` at once."""
    try:
        header, data = join(chunks)
    except Incomplete as error:
        raise _NoAnswer(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
    if header.version != VERSION:
        told = f"the trainer speaks version {VERSION}, the app version {header.version}"
        raise _NoAnswer(grpc.StatusCode.FAILED_PRECONDITION, f"{told}: update the older one")
    return header, data


def _refusal(when: str | None) -> str | None:
    """Returns why now is no time to train, or None."""
    if when is None:
        return None
    try:
        done = subprocess.run(
            shlex.split(when),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_WHEN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not now: `{when}` did not answer within {_WHEN_S:.0f} s"
    except OSError as error:
        return f"not now: `{when}` cannot be run: {error.strerror}"
    return f"not now: `{when}` said no (exit {done.returncode})" if done.returncode else None


def _bind(server: grpc.Server, place: Path) -> None:
    """Opens the socket for this user alone."""
    place.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{place}")
    finally:
        os.umask(before)
