"""The grid that an app's ServerApp talks to: calls of actors, replies in request order."""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from deploy.apps.node import Packed, Request
from deploy.apps.pace import Pace
from deploy.apps.parcel import Bytes, as_arrays, as_bytes, pack, unpack
from deploy.apps.replies import Replies
from deploy.engines.crew import Crew, Job, Lost

# Arrays of a message that are larger together go through the object store, once for all messages.
_STORED_BYTES = 65_536
# How many different such sets of arrays stay there.
_SHELF = 4
# A group of messages, expected to take a moment, is given up after this time and done one by one;
# and where the caller waits for less than this, there are no groups.
_GROUP_S = 10.0
_HURRY_S = 4 * _GROUP_S


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
    """Sends messages to actors that stand in for their nodes, quick ones several at a time.

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
        self._pace = Pace()
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
        for message, answer in self._answered(messages, until):
            if not isinstance(answer, Lost) or time.monotonic() < until:
                late -= 1
                yield self._reply(message, answer)
        if late:
            self.tally.late += late
            self._notice(f"{late} of {len(messages)} messages had no reply before the timeout")

    def _answered(self, messages: Sequence[Message], until: float) -> Iterator[tuple[Message, Any]]:
        """Yields each message that was sent in time, with its answer."""
        for wave in _waves(messages):
            groups: deque[_Group] = deque()
            for outcome in self._crew.map(self._jobs(wave, until, groups)):
                group = groups.popleft()
                yield from zip(group.messages, self._answers_of(group, outcome, until), strict=True)

    def _jobs(
        self, messages: Sequence[Message], until: float, groups: deque[_Group]
    ) -> Iterator[Job]:
        """Yields jobs of one or more messages, each taken when it is its turn."""
        place = 0
        while place < len(messages) and time.monotonic() < until:
            group = self._group(messages, place, until)
            place += len(group.messages)
            self.tally.messages += len(group.messages)
            groups.append(group)
            yield group.job(until)

    def _group(self, messages: Sequence[Message], place: int, until: float) -> _Group:
        """Returns the next messages that share their arrays, as many as the pace allows."""
        kind = messages[place].metadata.message_type
        size = self._pace.group(kind, len(messages) - place, self._crew.size)
        if until - time.monotonic() < _HURRY_S:
            size = 1  # a group is lost together, and there may be no time to do it again
        group = _Group(kind)
        for message in messages[place : place + size]:
            skeleton, apart = pack(message)
            if message.metadata.message_type != kind or not group.fits(apart):
                break
            group.apart = apart
            group.messages.append(message)
            group.requests.append(self._request(skeleton, message.metadata.dst_node_id))
        if sum(map(len, group.apart)) >= _STORED_BYTES:
            group.reference = self._shelf.reference(group.apart)
        return group

    def _request(self, skeleton: bytes, number: int) -> Request:
        node = self._nodes[number]
        node.calls += 1
        kept = node.kept and (node.kept[0], as_arrays(node.kept[1]))
        return skeleton, (number, node.partition, node.calls), kept

    def _answers_of(self, group: _Group, outcome: Any, until: float) -> Iterator[Any]:
        """Yields the answers of a group; one that was lost is done again message by message."""
        if isinstance(outcome, Lost):
            if len(group.messages) == 1:
                yield outcome
                return
            for one, again in zip(
                group.split(), self._crew.map(one.job(until) for one in group.split()), strict=True
            ):
                yield from self._answers_of(one, again, until)
            return
        seconds, answers = outcome
        size = sum(part.nbytes for answer in answers for part in _arrays_of(answer))
        self._pace.note(group.kind, seconds / len(answers), size // len(answers))
        yield from answers

    def _reply(self, message: Message, answer: Any) -> Message:
        if isinstance(answer, Lost):
            reply = self._error(message, ErrorCode.UNKNOWN, answer.reason)
        elif isinstance(answer[0], int):
            reply = self._error(message, *answer)
        else:
            (skeleton, arrays), kept = answer
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


@dataclass
class _Group:
    """Messages of one type that go to an actor together, because they share their arrays."""

    kind: str
    messages: list[Message] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    apart: list[bytes] = field(default_factory=list)
    reference: Any = None

    def fits(self, apart: list[bytes]) -> bool:
        """Whether a message with these arrays belongs here."""
        same = len(apart) == len(self.apart) and all(map(operator.is_, apart, self.apart))
        return same or not self.messages

    def job(self, until: float) -> Job:
        """Returns the call of an actor; a group that takes long is done again one by one."""
        left = max(0.0, until - time.monotonic())
        ttl = self.messages[0].metadata.ttl if len(self.messages) == 1 else _GROUP_S
        if self.reference is None:
            return Job((self.requests, as_arrays(self.apart)), min(left, ttl))
        return Job((self.requests,), min(left, ttl), (self.reference,))

    def split(self) -> Iterator[_Group]:
        """Returns each message as a group of its own."""
        for message, request in zip(self.messages, self.requests, strict=True):
            yield _Group(self.kind, [message], [request], self.apart, self.reference)


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
        self._sets: OrderedDict[tuple[int, ...], tuple[list[bytes], Any]] = OrderedDict()

    def reference(self, apart: list[bytes]) -> Any:
        """Returns a reference to arrays that lie in the object store."""
        identity = tuple(map(id, apart))  # bytes do not change, and the shelf keeps them alive
        if identity not in self._sets:
            self._sets[identity] = (apart, ray.put(as_arrays(apart)))
            if len(self._sets) > _SHELF:
                self._sets.popitem(last=False)
        self._sets.move_to_end(identity)
        return self._sets[identity][1]


def _arrays_of(answer: Any) -> Sequence[Bytes]:
    return () if isinstance(answer[0], int) else answer[0][1]


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
