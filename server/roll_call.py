"""The roll call of a real fleet: who is there, and whom they host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.events import Observer, Waiting
from server.fleet_register import Register
from server.population import Enough, Roll, hello_fault
from server.replies import Answer, Expected, reason_of
from shared_models.errors import RoundError, UpdateError
from shared_models.messages import BlockFailure, Hello
from shared_models.verbs import HELLO, LEFT_OUT
from shared_models.wire import decode_hello

NODES_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 600.0
"""How long a device that is connected may take to say who it is: it may be reading its data."""
_POLL_S = 0.2
_QUIET_S = 2.0  # nobody needs to be told of a wait that is shorter
_TOLD_S = 600.0


@dataclass(frozen=True)
class RollTimes:
    """How long to wait for nodes to connect, and then for those that did to answer."""

    connect_s: float = NODES_TIMEOUT_S
    answer_s: float = ANSWER_TIMEOUT_S


def call_roll(
    grid: Grid,
    enough: Enough,
    times: RollTimes,
    register: Register | None = None,
    observe: Observer | None = None,
) -> Roll:
    """Asks every node who it is, as they connect, until those that answered are enough.

    Who was asked is waited for while nodes may still connect; after that, only as long as those
    that answered are not enough. `RoundError` when nobody is. A node that claims what the
    `register` does not let it is left out, and told so.
    """
    call = _RollCall(grid, register)
    began = time.monotonic()
    while call.waits(time.monotonic() - began, enough, times):
        if time.monotonic() - began < times.connect_s:
            call.ask(times)
        call.listen()
        if observe is not None:
            call.report(time.monotonic() - began, enough, times, observe)
        time.sleep(_POLL_S)
    late = (f"no answer within {time.monotonic() - began:.0f} s" for _ in call.asked)
    left_out = {**call.left_out, **dict(zip(call.asked, late, strict=True))}
    call.tell(left_out)
    named = {call.name(node): reason for node, reason in left_out.items()}
    if not call.hellos:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(named.items())[:3])
        raise RoundError(
            f"no node answered ({why}); restart or remove them"
            if why
            else f"no node connected within {times.connect_s:g} s; start clients"
        )
    return Roll(dict(sorted(call.hellos.items())), named)


@dataclass
class _RollCall:
    grid: Grid
    register: Register | None
    asked: dict[int, Expected] = field(default_factory=dict)
    hellos: dict[int, Hello] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    reported: tuple[int, int] | None = None

    def waits(self, passed_s: float, enough: Enough, times: RollTimes) -> bool:
        """Returns whether it goes on."""
        satisfied = enough(self.hellos)
        if passed_s < times.connect_s:
            return bool(self.asked) or not satisfied
        return bool(self.asked) and not satisfied and passed_s < times.connect_s + times.answer_s

    def ask(self, times: RollTimes) -> None:
        """Asks the nodes that have connected since."""
        for node in self.grid.get_node_ids():
            if node in self.asked or node in self.hellos or node in self.left_out:
                continue
            lives_s = times.connect_s + times.answer_s
            ids = list(self.grid.push_messages([Message(RecordDict(), node, HELLO, ttl=lives_s)]))
            if ids and ids[0]:
                self.asked[node] = Expected(self.grid, ids[0], node)

    def listen(self) -> None:
        """Takes the answers that have come."""
        for node, expected in list(self.asked.items()):
            if (answer := expected.answer()) is None:
                continue
            del self.asked[node]
            told = self._admitted(node, _hello(answer))
            if isinstance(told, Hello):
                self.hellos[node] = told
            else:
                self.left_out[node] = told

    def report(self, passed_s: float, enough: Enough, times: RollTimes, observe: Observer) -> None:
        """Tells who watches for whom the run waits, whenever that has changed."""
        here = (enough.present(self.hellos), len(self.asked))
        if passed_s < _QUIET_S or here == self.reported or not self.waits(passed_s, enough, times):
            return
        self.reported = here
        patience_s = times.connect_s + (times.answer_s if self.asked else 0.0)
        observe(Waiting(here[0], enough.wanted, here[1], max(patience_s - passed_s, 0.0)))

    def tell(self, left_out: Mapping[int, str]) -> None:
        """Tells devices why they take no part; nobody waits for what they say to that."""
        for node, reason in left_out.items():
            content = RecordDict({LEFT_OUT: ConfigRecord({"reason": reason})})
            self.grid.push_messages([Message(content, node, LEFT_OUT, ttl=_TOLD_S)])

    def name(self, node: int) -> str:
        """Returns what a person calls this node."""
        known = None if self.register is None else self.register.name_of(node)
        return f"node {node}" if known is None else f"{known} (node {node})"

    def _admitted(self, node: int, told: Hello | str) -> Hello | str:
        if self.register is None or isinstance(told, str):
            return told
        return self.register.objection(node, told) or told


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
