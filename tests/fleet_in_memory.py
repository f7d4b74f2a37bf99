"""A fleet in memory: real ClientApps behind Flower's push and pull, no processes between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig

from clients.app import app
from deploy.engines.grid import LocalGrid, call_app
from server.app import Fleet, make_transport
from server.events import Event, Notice
from server.roll_call import RollTimes
from server.run import learn, open_run
from server.run_folder import RunFolder
from shared_models.config import Config, to_toml

Node = Callable[[Message], Message | None]


class PostOffice(LocalGrid):
    """Flower's push and pull in memory: a node answers when its message is pulled, or does not."""

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        super().__init__({})
        self.nodes = dict(nodes)
        self.waiting: dict[str, Message] = {}
        self.most: dict[int, int] = {}
        self._next = itertools.count(1)

    def _answer(self, messages: Iterator[Message]) -> Iterator[Message]:
        del messages
        raise AssertionError("a fleet's grid is not asked to send and receive")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._take(message) for message in messages]

    def _take(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = str(next(self._next))
        self.waiting[message.metadata.message_id] = message
        own = [held for held in self.waiting.values() if held.metadata.dst_node_id == node]
        self.most[node] = max(self.most.get(node, 0), len(own))
        return message.metadata.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for key in message_ids:
            if (
                reply := self.nodes[self.waiting[key].metadata.dst_node_id](self.waiting[key])
            ) is None:
                return []
            del self.waiting[key]
            return [reply]
        return []


@dataclass
class Device:
    """A real ClientApp that hosts every `places`-th client."""

    config: Config
    place: int
    places: int
    node: int

    def __call__(self, message: Message) -> Message | None:
        where: UserConfig = {"partition-id": self.place, "num-partitions": self.places}
        context = Context(1, self.node, where, RecordDict(), {"config": to_toml(self.config)})
        reply = call_app(app, message, context)
        reply.metadata.__dict__["_src_node_id"] = self.node
        return reply


def fleet(config: Config, *nodes: int, places: int | None = None) -> PostOffice:
    count = places or len(nodes)
    devices: dict[int, Node] = {n: Device(config, at, count, n) for at, n in enumerate(nodes)}
    return PostOffice(devices)


def train(
    config: Config,
    grid: PostOffice,
    path: Path,
    *,
    resume: bool = False,
    run_id: str | None = "run",
) -> tuple[RunFolder, list[str]]:
    told: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Notice):
            told.append(event.text)

    folder = open_run(config, path, resume=resume)
    transport = make_transport(grid, 5.0, Fleet(run_id, times=RollTimes(1.0, 1.0)))
    with folder.held():
        learn(config, folder, transport, observe)
    return folder, told
