"""The Ray engine: a crew of actors answers the messages, on this machine or on a Ray cluster.

The weights of a round are shared once, and each worker reads them once. They go down, and raw
buffers come back, through shared memory where driver and worker are on one machine, else through
Ray. Workers see neither the server nor each other, so their number changes no byte of a result.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import os
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common import DEFAULT_TTL

from deploy.engines.crew import Crew, Gone, Job, Lost, MakeWorker
from deploy.engines.grid import (
    NODE_ID,
    LocalGrid,
    RunConfig,
    become_a_task,
    call_app,
    failed,
    make_context,
)
from deploy.engines.parcel import Buffer, Parcel, pack, unpack
from deploy.engines.slabs import Notice, Reader, Ticket, Writer, read_notice
from shared_models.errors import EngineError
from shared_models.verbs import HELLO
from shared_models.wire import decode_hello


class ClientWorker:
    """Holds the ClientApp in an actor, with the data loaded."""

    def __init__(self, app: str, run_config: RunConfig, beacon: Ticket | None) -> None:
        become_a_task()
        module, _, attribute = app.partition(":")
        self._app = getattr(importlib.import_module(module), attribute)
        self._context = make_context(run_config)
        self._writer = Writer(beacon)
        self._board = _Board()
        self._who = self._greet()

    def _greet(self) -> str:
        """Says hello to the app, which loads the data; returns a digest of its answer."""
        answer = call_app(self._app, Message(RecordDict(), NODE_ID, HELLO), self._context)
        if answer.has_error():
            raise EngineError(answer.error.reason)
        return hashlib.sha256(repr(decode_hello(answer.content)).encode()).hexdigest()

    def work(self, parcel: Parcel, *shared: Parcel | Posted) -> bytes | Parcel:
        """Answers one message; `shared` are its array records."""
        records = [self._board.read(told) for told in shared]
        message, run_config = unpack(parcel.skeleton, parcel.buffers, records.__getitem__)
        if run_config != self._context.run_config:
            self._context = make_context(run_config)
        reply = pack((self._who, call_app(self._app, message, self._context)))
        ticket = self._writer.deliver(reply.buffers)
        # Ray carries plain bytes as they are; anything else it would pickle.
        return reply if ticket is None else pickle.dumps((reply.skeleton, ticket))


class RayGrid(LocalGrid):
    """Has a crew answer; a message's time to live is the deadline of its job."""

    engine = "ray"
    cuts_off = True

    def __init__(self, app: str, run_config: RunConfig, workers: int, *, here: bool) -> None:
        super().__init__(run_config)
        self._posts = here and hasattr(os, "memfd_create")
        self._reader = Reader()
        args = (app, run_config, self._reader.beacon)
        self._crew = Crew(MakeWorker(ClientWorker, args), workers, self._receive)
        self._who: str | None = None

    @property
    def workers(self) -> int:
        """How many actors train."""
        return self._crew.size

    def wait(self) -> None:
        """Returns when all workers have loaded their data, or raises `EngineError`."""
        self._crew.wait()

    def close(self) -> None:
        """Ends the workers."""
        self._crew.close()

    def _answer(self, messages: Iterator[Message]) -> Iterator[Message]:
        asked: deque[Message] = deque()
        with contextlib.closing(_Shelf(posts=self._posts)) as shelf:

            def jobs() -> Iterator[Job]:
                for message in messages:
                    asked.append(message)
                    yield self._job(message, shelf)

            for outcome in self._crew.map(jobs()):
                yield self._reply(asked.popleft(), outcome)

    def _job(self, message: Message, shelf: _Shelf) -> Job:
        found: list[Any] = []

        def place_of(record: ArrayRecord) -> int:
            found.append(shelf.find(record))
            return len(found) - 1

        # What is the message's own travels in it; broadcasts are shared.
        parcel = pack((message, self.context.run_config), place_of)
        asked_for = message.metadata.ttl != DEFAULT_TTL  # Flower's half a day is nobody's wish
        ttl = message.metadata.ttl if asked_for else math.inf
        if self._posts:
            return Job((parcel, *found), ttl)
        return Job((parcel,), ttl, tuple(found))

    def _reply(self, message: Message, outcome: tuple[str, Message] | Lost) -> Message:
        if isinstance(outcome, Lost):
            return failed(message, outcome.reason, timed_out=outcome.timed_out)
        who, reply = outcome
        self._who = self._who or who
        if who != self._who:
            raise EngineError(
                "workers differ in their data or versions; "
                "give all machines of the cluster the same environment and the same data"
            )
        return reply

    def _receive(self, result: bytes | Parcel) -> tuple[str, Message]:
        """Returns who replied, and the reply; maps shared memory while its writer is alive."""
        skeleton, buffers = self._opened(result)
        received: tuple[str, Message] = unpack(skeleton, buffers)
        return received

    def _opened(self, result: bytes | Parcel) -> tuple[bytes, Sequence[Buffer]]:
        if isinstance(result, Parcel):
            return result.skeleton, result.buffers
        skeleton, ticket = pickle.loads(result)  # noqa: S301 - a crew is one trust domain
        try:
            return skeleton, self._reader.open(ticket)
        except (OSError, ValueError):
            raise Gone from None


@dataclass(frozen=True)
class Posted:
    """An array record that hangs in shared memory."""

    skeleton: bytes
    ticket: Ticket


class _Board:
    """A worker's view of what is posted: most jobs of a round have the same."""

    def __init__(self) -> None:
        self._last: tuple[Posted, ArrayRecord] | None = None

    def read(self, told: Parcel | Posted) -> ArrayRecord:
        if isinstance(told, Parcel):
            record: ArrayRecord = unpack(told.skeleton, told.buffers)
            return record
        if self._last is None or self._last[0] != told:
            self._last = (told, unpack(told.skeleton, read_notice(told.ticket)))
        return self._last[1]


class _Shelf:
    """The array records of one sending: each is shared once, however often it is sent.

    Posted in shared memory where all workers are on this machine, else put into Ray's object store,
    which takes 3 ms to hand them over.
    """

    def __init__(self, *, posts: bool) -> None:
        self._posts = posts
        self._notices: list[Notice] = []
        self._found: dict[int, tuple[ArrayRecord, Any]] = {}

    def find(self, record: ArrayRecord) -> Any:
        """Returns where workers find a record: what is posted, or a reference of Ray's."""
        if id(record) not in self._found:
            self._found[id(record)] = (record, self._share(pack(record)))
        return self._found[id(record)][1]

    def close(self) -> None:
        """Takes down what was posted; by now everybody who wanted it has it."""
        for notice in self._notices:
            notice.close()

    def _share(self, parcel: Parcel) -> Any:
        if not self._posts:
            return ray.put(parcel)
        self._notices.append(Notice(parcel.buffers))
        return Posted(parcel.skeleton, self._notices[-1].ticket)
