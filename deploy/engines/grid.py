"""What the engines for one machine share: Flower's grid with one node and without a SuperLink."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

NODE_ID = 1
RunConfig = dict[str, bool | float | int | str]


class LocalGrid(Grid):
    """A grid with one node, whose clients any worker can train; an engine says how it answers."""

    engine: str

    def __init__(self, run_config: RunConfig) -> None:
        become_a_task()
        self.context = make_context(run_config)
        self._run = Run.create_empty(run_id=1)
        self._numbers = itertools.count(1)
        self._answers: dict[str, Message] = {}

    @abstractmethod
    def _answer(self, messages: Iterator[Message]) -> Iterator[Message]:
        """Yields the reply to each message, lazily and in order; a fault is a reply too."""

    def configure(self, run_config: RunConfig) -> None:
        """Sets what the ClientApp sees as its run config from the next message on."""
        self.context = make_context(run_config)

    def wait(self) -> None:
        """Returns when all workers stand ready, where there are some."""

    def close(self) -> None:
        """Lets go of workers, where there are some; nothing can be sent afterwards."""

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
        return [NODE_ID]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Trains at once and keeps the replies until they are pulled; returns message ids."""
        replies = list(self.send_and_receive(messages))
        self._answers.update({reply.metadata.reply_to_message_id: reply for reply in replies})
        return [reply.metadata.reply_to_message_id for reply in replies]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies to messages that were pushed, each once."""
        wanted = [key for key in message_ids if key in self._answers]
        return [self._answers.pop(key) for key in wanted]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yields each reply when it is asked for, in the order of the messages.

        `timeout` bounds nothing here: a message's own time to live does, where workers can be cut
        off.
        """
        del timeout
        return self._answer(self._numbered(messages))

    def _numbered(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            yield message


def become_a_task() -> None:
    """Lets this process make messages: Flower makes them only inside a task of its own."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1


def make_context(run_config: RunConfig) -> Context:
    """Returns the context that the one node's ClientApp sees."""
    return Context(
        run_id=1, node_id=NODE_ID, node_config={}, state=RecordDict(), run_config=run_config
    )


def call_app(client_app: ClientApp, message: Message, context: Context) -> Message:
    """Returns the ClientApp's reply; its fault travels back as a reply, as with a SuperNode."""
    try:
        return client_app(message, context)
    except Exception as error:
        return failed(message, f"{type(error).__name__}: {error}")


def failed(message: Message, reason: str, *, timed_out: bool = False) -> Message:
    """Returns the reply that tells why there is none."""
    raised, late = ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    return Message(Error(late if timed_out else raised, reason), reply_to=message)
