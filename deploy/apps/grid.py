"""The grid that an app's ServerApp talks to: one actor call a message, replies in request order."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from deploy.apps.node import Packed
from deploy.apps.parcel import as_arrays, as_bytes, pack, unpack
from deploy.apps.replies import Replies
from deploy.engines.crew import Crew, Job, Lost

# Arrays of a message that are larger together go through the object store, once for all messages.
_STORED_BYTES = 65_536
# How many different such sets of arrays stay there.
_SHELF = 4


@dataclass
class _Node:
    """What the server's side knows of a node."""

    partition: int
    calls: int = 0
    kept: Packed | None = None


@dataclass
class Tally:
    """What went through a grid."""

    messages: int = 0
    failed: int = 0
    late: int = 0


class AppGrid(Grid):
    """Sends each message to an actor that stands in for its node.

    Node ids are a function of the partition. Replies come in the order of the messages and are made
    as they are asked for; whatever was not asked for is made before the next messages are sent, so
    that a node sees its messages one after another, in order.
    """

    def __init__(self, crew: Crew, nodes: int, run: Run, notice: Callable[[str], None]) -> None:
        self.tally = Tally()
        self._crew = crew
        self._run = run
        self._notice = notice
        self._nodes = {node_id(partition): _Node(partition) for partition in range(nodes)}
        self._shelf = _Shelf()
        self._numbers = itertools.count(1)
        self._open = _Calls(iter(()))
        self._pushed: list[_Calls] = []
        self._answers: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Sets what `run` returns."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run, as Flower describes it."""
        return Run(**vars(self._run))

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the ids of all nodes, in the order of their partitions."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes messages to nodes; returns their ids."""
        known = self._number(messages)
        self._pushed.append(self._send(known, math.inf))
        return [message.metadata.message_id for message in known]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Waits for the replies to messages that were pushed; returns each once."""
        for calls in self._pushed:
            self._answers.update((reply.metadata.reply_to_message_id, reply) for reply in calls)
        self._pushed.clear()
        wanted = set(message_ids)
        return [self._answers.pop(key) for key in list(self._answers) if key in wanted]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Returns the replies that come within `timeout` seconds, in the order of the messages."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        return Replies(self._send(self._number(messages), until))

    def finish(self) -> None:
        """Makes the calls that nobody asked the replies of."""
        self._open.finish()

    def _number(self, messages: Iterable[Message]) -> list[Message]:
        known = []
        for message in messages:
            if message.metadata.dst_node_id not in self._nodes:
                self._notice(f"there is no node {message.metadata.dst_node_id}: a message is lost")
                continue
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            known.append(message)
        return known

    def _send(self, messages: Sequence[Message], until: float) -> _Calls:
        self._open.finish()
        self._open = _Calls(self._replies(messages, until))
        return self._open

    def _replies(self, messages: Sequence[Message], until: float) -> Iterator[Message]:
        late = len(messages)
        for wave in _waves(messages):
            outcomes = self._crew.map(self._jobs(wave, until))
            for outcome, message in zip(outcomes, wave, strict=False):
                if not isinstance(outcome, Lost) or time.monotonic() < until:
                    late -= 1
                    yield self._reply(message, outcome)
        if late:
            self.tally.late += late
            self._notice(f"{late} of {len(messages)} messages had no reply before the timeout")

    def _jobs(self, messages: Sequence[Message], until: float) -> Iterator[Job]:
        for message in messages:
            left = until - time.monotonic()
            if left <= 0:
                return
            self.tally.messages += 1
            yield Job(self._request(message), min(left, message.metadata.ttl))

    def _request(self, message: Message) -> tuple[Any, ...]:
        number = message.metadata.dst_node_id
        node = self._nodes[number]
        node.calls += 1
        skeleton, apart = pack(message)
        key, arrays = self._shelf.place(apart)
        kept = node.kept and (node.kept[0], as_arrays(node.kept[1]))
        return (skeleton, key, (number, node.partition, node.calls), kept), arrays

    def _reply(self, message: Message, outcome: Any) -> Message:
        if isinstance(outcome, Lost):
            reply = self._error(message, ErrorCode.UNKNOWN, outcome.reason)
        elif isinstance(outcome[0], int):
            reply = self._error(message, *outcome)
        else:
            (skeleton, arrays), kept = outcome
            reply = unpack(skeleton, as_bytes(arrays))
            if kept is not None:
                node = self._nodes[message.metadata.dst_node_id]
                node.kept = kept[0], as_bytes(kept[1])
        reply.metadata.__dict__["_message_id"] = f"{message.metadata.message_id}-reply"
        return reply

    def _error(self, message: Message, code: int, reason: str) -> Message:
        self.tally.failed += 1
        partition = self._nodes[message.metadata.dst_node_id].partition
        self._notice(f"partition {partition}: {message.metadata.message_type} failed: {reason}")
        return Message(Error(code, reason), reply_to=message)


class _Calls(Iterator[Message]):
    """The replies of one sending, each once; `finish` makes them before they are asked for."""

    def __init__(self, replies: Iterator[Message]) -> None:
        self._replies = replies
        self._early: deque[Message] = deque()

    def __next__(self) -> Message:
        return self._early.popleft() if self._early else next(self._replies)

    def finish(self) -> None:
        """Makes all replies that are still to be made."""
        self._early.extend(self._replies)


class _Shelf:
    """Sets of arrays in the object store, each put there once for all messages that share it."""

    def __init__(self) -> None:
        self._sets: OrderedDict[tuple[int, ...], tuple[list[bytes], str, Any]] = OrderedDict()
        self._numbers = itertools.count(1)

    def place(self, apart: list[bytes]) -> tuple[str, Any]:
        """Returns a key and a reference; small sets have no key and travel with the message."""
        if sum(map(len, apart)) < _STORED_BYTES:
            return "", as_arrays(apart)
        identity = tuple(map(id, apart))  # bytes do not change, and the shelf keeps them alive
        if identity not in self._sets:
            key = str(next(self._numbers))
            self._sets[identity] = (apart, key, ray.put(as_arrays(apart)))
            if len(self._sets) > _SHELF:
                self._sets.popitem(last=False)
        self._sets.move_to_end(identity)
        _, key, reference = self._sets[identity]
        return key, reference


def node_id(partition: int) -> int:
    """Returns the id of a node: as large as Flower's, and the same in every run."""
    return int.from_bytes(hashlib.sha256(f"node {partition}".encode()).digest()[:8]) >> 1


def _waves(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Cuts messages where a node would get its second: it is to see the first one's effect."""
    start, seen = 0, set[int]()
    for place, message in enumerate(messages):
        number = message.metadata.dst_node_id
        if number in seen:
            yield messages[start:place]
            start, seen = place, set()
        seen.add(number)
    if start < len(messages):
        yield messages[start:]
