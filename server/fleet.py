"""Messages to a real fleet, by Flower's public push and pull.

Its `send_and_receive` takes no generator, looks every three seconds and waits for ever. Here a
node has two messages at most, so that it never idles and the server holds little; each has its own
deadline, which begins when the one before it is over.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from server.population import Enough, Roll, hello_fault
from shared_models.errors import RoundError, UpdateError, one_line
from shared_models.messages import ABSENT, BlockFailure, Hello
from shared_models.verbs import HELLO
from shared_models.wire import decode_hello

CLIENT_DEADLINE_S = 600.0
"""How long a client may take where the config does not say."""
NODES_TIMEOUT_S = 60.0
_POLL_S = 0.2
_AHEAD = 2
SPARE_S = 30.0
_TIMED_OUT = frozenset(
    {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
)
# What of Flower or below it went wrong is no client's fault: the run ends, and can go on.
_TRANSPORT = frozenset({"httpx", "httpcore", "h11", "ssl", "socket"})

Answer: TypeAlias = Message | BlockFailure


@dataclass(frozen=True)
class Letter:
    """A message to be: `write` makes it when it is its turn, with the time it has to live."""

    node: int
    patience_s: float
    write: Callable[[float], Message]


def exchange(
    grid: Grid, letters: Iterable[Letter], poll_s: float = _POLL_S
) -> Iterator[tuple[int, Answer]]:
    """Yields each letter's place with its answer, or why there is none, as they come."""
    boxes: dict[int, _Box] = {}
    for place, letter in enumerate(letters):
        boxes.setdefault(letter.node, _Box(grid)).waiting.append((place, letter))
    while boxes:
        for node, box in list(boxes.items()):
            yield from box.answers()
            if not box.waiting and not box.sent:
                del boxes[node]
        if boxes:
            time.sleep(poll_s)


@dataclass(frozen=True)
class _Sent:
    place: int
    letter: Letter
    message_id: str | None


@dataclass
class _Box:
    """One node's letters: those that wait, and those that were sent."""

    grid: Grid
    waiting: deque[tuple[int, Letter]] = field(default_factory=deque)
    sent: deque[_Sent] = field(default_factory=deque)
    since: float = 0.0  # when the first of those that were sent became the first

    def answers(self) -> Iterator[tuple[int, Answer]]:
        """Yields what has come for the first letters, and sends the next ones."""
        self._send()
        while self.sent and (answer := self._first()) is not None:
            place = self.sent.popleft().place
            self.since = time.monotonic()
            self._send()
            yield place, answer

    def _send(self) -> None:
        while self.waiting and len(self.sent) < _AHEAD:
            place, letter = self.waiting.popleft()
            if not self.sent:
                self.since = time.monotonic()
            lives_s = letter.patience_s + sum(sent.letter.patience_s for sent in self.sent)
            # It outlives our patience, so that the reason is ours and not that it is not found.
            pushed = _push(self.grid, letter, lives_s + SPARE_S)
            self.sent.append(_Sent(place, letter, pushed))

    def _first(self) -> Answer | None:
        sent = self.sent[0]
        if sent.letter.node == ABSENT:
            return BlockFailure("not connected", timed_out=True)
        if sent.message_id is None:
            return BlockFailure(f"node {sent.letter.node} takes no message", timed_out=True)
        if (answer := _pull(self.grid, sent.message_id, sent.letter.node)) is not None:
            return answer
        patience = sent.letter.patience_s
        if time.monotonic() - self.since < patience:
            return None
        return BlockFailure(f"no reply within {patience:g} s", timed_out=True)


def _push(grid: Grid, letter: Letter, lives_s: float) -> str | None:
    if letter.node == ABSENT:
        return None
    ids = list(grid.push_messages([letter.write(lives_s)]))
    return ids[0] or None if ids else None


def _pull(grid: Grid, message_id: str, node: int) -> Answer | None:
    """Returns the answer to one message: together, a hostile one would spoil the others."""
    try:
        answer = next(iter(grid.pull_messages([message_id])), None)
        if answer is None or answer.has_error():
            return answer
        if answer.metadata.reply_to_message_id != message_id or answer.metadata.src_node_id != node:
            return BlockFailure("the reply is to another message", "refused")
    except Exception as error:
        if is_transport(error):
            raise
        told = one_line(f"{type(error).__name__}: {error}")
        return BlockFailure(f"malformed message: {told}", "refused")
    return answer


def is_transport(error: BaseException) -> bool:
    """Whether it is the way to the SuperLink that failed, not what was said."""
    module = type(error).__module__.partition(".")[0]
    return module in _TRANSPORT or isinstance(error, (ConnectionError, TimeoutError))


def failure_of(answer: Message) -> BlockFailure:
    """Returns Flower's error reply as a failure with a reason that a person can read."""
    return BlockFailure(reason_of(answer), timed_out=answer.error.code in _TIMED_OUT)


def reason_of(answer: Message) -> str:
    """Returns why a node did not answer, without what Flower wraps around an exception."""
    reason = (answer.error.reason or "").strip()
    if found := re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>:<'(.*)'>", reason, re.DOTALL):
        name, text = found.groups()
        return one_line(text if name in _OURS else f"{name}: {text}")
    lines = reason.splitlines()
    return one_line(lines[-1]) if lines else f"Flower error {answer.error.code}"


_OURS = {"InputError", "ConfigError", "DataError", "UpdateError", "EngineError", "TrainerFailed"}


def call_roll(grid: Grid, enough: Enough, timeout_s: float) -> Roll:
    """Asks every node who it is, as they connect, until those that answered are enough.

    Who was asked is waited for. After `timeout_s` it goes on with those there are; `RoundError`
    when nobody is.
    """
    roll = _RollCall(grid, time.monotonic() + timeout_s)
    while time.monotonic() < roll.until:
        roll.ask()
        roll.listen()
        if enough(roll.hellos) and not roll.asked:
            break
        time.sleep(_POLL_S)
    late = dict.fromkeys(roll.asked, f"no answer within {timeout_s:g} s")
    left_out = {**roll.left_out, **late}
    if not roll.hellos:
        why = "; ".join(f"node {node}: {reason}" for node, reason in list(left_out.items())[:3])
        raise RoundError(
            f"no node answered within {timeout_s:g} s ({why}); restart or remove them"
            if why
            else f"no node connected within {timeout_s:g} s; start clients"
        )
    return Roll(dict(sorted(roll.hellos.items())), left_out)


@dataclass
class _RollCall:
    grid: Grid
    until: float
    asked: dict[int, str] = field(default_factory=dict)
    hellos: dict[int, Hello] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)

    def ask(self) -> None:
        """Asks the nodes that have connected since."""
        for node in self.grid.get_node_ids():
            if node in self.asked or node in self.hellos or node in self.left_out:
                continue
            left = max(1.0, self.until - time.monotonic())
            question = Message(RecordDict(), node, HELLO, ttl=left)
            ids = list(self.grid.push_messages([question]))
            if ids and ids[0]:
                self.asked[node] = ids[0]

    def listen(self) -> None:
        """Takes the answers that have come."""
        for node, message_id in list(self.asked.items()):
            if (answer := _pull(self.grid, message_id, node)) is None:
                continue
            del self.asked[node]
            told = _hello(answer)
            if isinstance(told, Hello):
                self.hellos[node] = told
            else:
                self.left_out[node] = told


def _hello(answer: Answer) -> Hello | str:
    if isinstance(answer, BlockFailure):
        return answer.reason
    if answer.has_error():
        return reason_of(answer)
    try:
        hello = decode_hello(answer.content)
    except UpdateError as error:
        return str(error)
    return hello_fault(hello) or hello
