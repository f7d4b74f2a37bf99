"""The Ray engine: a crew of actors answers the messages, on this machine or on a Ray cluster.

The weights of a round go to the object store once, and from there once to each worker. What comes
back are raw buffers, through shared memory where driver and worker are on one machine, else through
Ray. Workers see neither the server nor each other, so their number changes no byte of a result.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from flwr.app import ArrayRecord, Message, RecordDict

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
from deploy.engines.slabs import Reader, Ticket, Writer
from shared_models.errors import EngineError
from shared_models.wire import HELLO, decode_hello

# Array records that a sending keeps at hand: the weights, and what may go with them.
_KEPT = 4


class ClientWorker:
    """Holds the ClientApp in an actor, with the data loaded."""

    def __init__(self, app: str, run_config: RunConfig, beacon: Ticket | None) -> None:
        become_a_task()
        module, _, attribute = app.partition(":")
        self._app = getattr(importlib.import_module(module), attribute)
        self._context = make_context(run_config)
        self._writer = Writer(beacon)
        self._who = self._greet()

    def _greet(self) -> str:
        """Says hello to the app, which loads the data; returns a digest of its answer."""
        answer = call_app(self._app, Message(RecordDict(), NODE_ID, HELLO), self._context)
        if answer.has_error():
            raise EngineError(answer.error.reason)
        return hashlib.sha256(repr(decode_hello(answer.content)).encode()).hexdigest()

    def work(self, skeleton: bytes, *shared: Parcel) -> bytes | Parcel:
        """Answers one message; `shared` are its array records."""
        records = [unpack(parcel.skeleton, parcel.buffers) for parcel in shared]
        message, run_config = unpack(skeleton, (), records.__getitem__)
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

    def __init__(self, app: str, run_config: RunConfig, workers: int) -> None:
        super().__init__(run_config)
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

        def jobs() -> Iterator[Job]:
            shelf = _Shelf()
            for message in messages:
                asked.append(message)
                yield self._job(message, shelf)

        for outcome in self._crew.map(jobs()):
            yield self._reply(asked.popleft(), outcome)

    def _job(self, message: Message, shelf: _Shelf) -> Job:
        refs: list[Any] = []

        def place_of(record: ArrayRecord) -> int:
            refs.append(shelf.ref_of(record))
            return len(refs) - 1

        parcel = pack((message, self.context.run_config), place_of)
        return Job((parcel.skeleton,), message.metadata.ttl, tuple(refs))

    def _reply(self, message: Message, outcome: tuple[str, Message] | Lost) -> Message:
        if isinstance(outcome, Lost):
            return failed(message, outcome.reason)
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


class _Shelf:
    """The array records of one sending: each goes to the object store once, however often sent."""

    def __init__(self) -> None:
        self._refs: dict[int, tuple[ArrayRecord, Any]] = {}

    def ref_of(self, record: ArrayRecord) -> Any:
        if id(record) not in self._refs:
            if len(self._refs) == _KEPT:
                del self._refs[next(iter(self._refs))]
            self._refs[id(record)] = (record, ray.put(pack(record)))
        return self._refs[id(record)][1]
