"""Answers from a real fleet: how they are fetched, and why there is none.

Flower's pull waits minutes for an upload that a killed client broke off: so each is fetched in a
thread of its own, that is left alone when it takes long.
"""

from __future__ import annotations

import re
import threading
from typing import TypeAlias

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from shared_models.errors import one_line
from shared_models.messages import BlockFailure

Answer: TypeAlias = Message | BlockFailure

_LOOK_S = 1.0
_TIMED_OUT = frozenset(
    {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
)
# What of Flower or below it went wrong is no client's fault: the run ends, and can go on.
_TRANSPORT = frozenset({"httpx", "httpcore", "h11", "ssl", "socket"})
# In Flower's words the owner of a run would look for a node, or for a message.
_IN_OUR_WORDS = {
    ErrorCode.MESSAGE_UNAVAILABLE: "its device took no message in time",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "its device's reply came too late",
    ErrorCode.NODE_UNAVAILABLE: "its device is not connected any more",
    ErrorCode.CLIENT_APP_CRASHED: "the process on its device died",
}
_OURS = {"InputError", "ConfigError", "DataError", "UpdateError", "EngineError", "TrainerFailed"}


class Expected:
    """The answer to one message, which may never come."""

    def __init__(self, grid: Grid, message_id: str, node: int) -> None:
        self._grid, self._message_id, self._node = grid, message_id, node
        self._looking: threading.Thread | None = None
        self._found: Answer | BaseException | None = None

    def answer(self) -> Answer | None:
        """Returns the answer if it is there, None if not yet; raises where the SuperLink is gone.

        A look is waited for a second, and goes on by itself; a later call sees what it found.
        """
        patience_s = 0.0
        if self._looking is None:
            patience_s = _LOOK_S
            self._looking = threading.Thread(target=self._look, daemon=True)
            self._looking.start()
        self._looking.join(patience_s)
        if self._looking.is_alive():
            return None
        self._looking = None
        if isinstance(self._found, BaseException):
            raise self._found
        return self._found

    def _look(self) -> None:
        try:
            self._found = _pull(self._grid, self._message_id, self._node)
        except BaseException as error:
            self._found = error


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
    # An engine of ours cuts off under the code of a late reply, and says why; so does Flower.
    is_late = answer.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    is_ours = is_late and reason and not reason.startswith("Error: ")
    if (known := _IN_OUR_WORDS.get(answer.error.code)) and not is_ours:
        return known
    if found := re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>:<'(.*)'>", reason, re.DOTALL):
        name, text = found.groups()
        return one_line(text if name in _OURS else f"{name}: {text}")
    lines = reason.splitlines()
    return one_line(lines[-1]) if lines else f"Flower error {answer.error.code}"
