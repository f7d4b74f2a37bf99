"""The inline engine keeps Flower's contract of a grid."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flwr.app import Message, RecordDict

from clients.app import app
from deploy.engines.inline import InlineGrid
from server.app import make_transport
from server.population import Enough
from shared_models.config import to_toml
from shared_models.verbs import HELLO
from shared_models.wire import decode_hello
from tests.in_memory import config_of


@pytest.fixture
def grid() -> InlineGrid:
    return InlineGrid(app, {"config": to_toml(config_of())})


def question(kind: str = HELLO) -> Message:
    return Message(RecordDict(), 1, kind)


def test_replies_come_only_when_they_are_asked_for(grid: InlineGrid) -> None:
    asked: list[int] = []

    def questions() -> Iterator[Message]:
        for number in range(3):
            asked.append(number)
            yield question()

    replies = grid.send_and_receive(questions())
    assert asked == []
    assert decode_hello(next(replies).content).client_ids == tuple(range(12))
    assert asked == [0]


def test_pushed_messages_are_pulled_once(grid: InlineGrid) -> None:
    ids = list(grid.push_messages([question(), question()]))
    assert len(set(ids)) == 2
    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert list(grid.pull_messages(ids)) == []


def test_a_fault_in_the_client_app_travels_back_as_a_reply(grid: InlineGrid) -> None:
    (reply,) = grid.send_and_receive([question("train.nonsense")])
    assert reply.has_error()
    assert "nonsense" in (reply.error.reason or "")


def test_the_coordinator_sees_one_shared_population(grid: InlineGrid) -> None:
    transport = make_transport(grid)
    (hello,) = transport.hello(Enough(1)).hellos.values()
    assert hello.shared
    assert sum(hello.examples) == 1438
    assert transport.engine.name == "inline"
