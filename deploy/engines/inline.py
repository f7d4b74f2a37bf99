"""The inline engine: server and clients in this process, one after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_NODE_ID = 1
RunConfig = dict[str, bool | float | int | str]


class InlineGrid(Grid):
    """Calls the ClientApp for each message; replies come lazily, in order, one outstanding."""

    engine = "inline"

    def __init__(self, client_app: ClientApp, run_config: RunConfig) -> None:
        # Flower makes messages only inside a task of its own; this process is that task.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
        self._client_app = client_app
        self._context = Context(
            run_id=1, node_id=_NODE_ID, node_config={}, state=RecordDict(), run_config=run_config
        )
        self._run = Run.create_empty(run_id=1)
        self._numbers = itertools.count(1)
        self._answers: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Sets what `run` returns."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run, as Flower describes it."""
        return self._run

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
        """Returns the one node there is."""
        return [_NODE_ID]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Trains at once and keeps the replies until they are pulled; returns message ids."""
        ids = []
        for message in messages:
            reply = self._call(message)
            self._answers[reply.metadata.reply_to_message_id] = reply
            ids.append(reply.metadata.reply_to_message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies to messages that were pushed, each once."""
        wanted = [key for key in message_ids if key in self._answers]
        return [self._answers.pop(key) for key in wanted]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yields each reply when it is asked for; there is nobody else to wait for."""
        del timeout  # nothing is ever outstanding
        return map(self._call, messages)

    def _call(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = str(next(self._numbers))
        try:
            return self._client_app(message, self._context)
        except Exception as error:  # as a SuperNode does: the fault travels back as a reply
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
