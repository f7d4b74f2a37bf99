"""Messages to a real fleet, by Flower's public push and pull.

Its `send_and_receive` takes no generator, looks every three seconds and waits for ever. Here a
node has two messages at most, so that it never idles and the server holds little; each has its own
deadline, which begins when the one before it is over.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from server.replies import Answer, Expected
from shared_models.messages import ABSENT, BlockFailure

CLIENT_DEADLINE_S = 600.0
"""How long a client may take where the config does not say."""
_POLL_S = 0.2
_AHEAD = 2
SPARE_S = 30.0


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
    expected: Expected | None


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
        if sent.expected is None:
            return BlockFailure(f"node {sent.letter.node} takes no message", timed_out=True)
        if (answer := sent.expected.answer()) is not None:
            return answer
        patience = sent.letter.patience_s
        if time.monotonic() - self.since < patience:
            return None
        return BlockFailure(f"no reply within {patience:g} s", timed_out=True)


def _push(grid: Grid, letter: Letter, lives_s: float) -> Expected | None:
    if letter.node == ABSENT:
        return None
    ids = list(grid.push_messages([letter.write(lives_s)]))
    return Expected(grid, ids[0], letter.node) if ids and ids[0] else None
