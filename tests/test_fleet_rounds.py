"""Rounds on a fleet: by Flower's push and pull, with deadlines; nodes come and go."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from server.events import Event, Waiting
from server.fleet import SPARE_S, Letter, exchange
from server.manifest import hosts_in
from server.plain import describe
from server.population import (
    Enough,
    Hosted,
    hosts_these,
    merge_hellos,
    rejoined,
)
from server.replies import Answer, reason_of
from server.roll_call import RollTimes, call_roll
from server.run_folder import RunFolder
from shared_models.errors import CheckpointError, RoundError
from shared_models.files import sha256_of
from shared_models.messages import ABSENT, BlockFailure, Hello
from shared_models.wire import decode_hello, encode_hello
from tests.bare_fleet import BareFleet
from tests.conftest import DIGITS
from tests.fleet_in_memory import Device, PostOffice, fleet, train
from tests.in_memory import config_of


def echo(message: Message) -> Message:
    reply = Message(RecordDict(), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
    return reply


def silent(_: Message) -> None:
    return None


def letter(node: int, patience_s: float = 5.0) -> Letter:
    return Letter(node, patience_s, lambda ttl: Message(RecordDict(), node, "query.x", ttl=ttl))


def answers_of(grid: PostOffice, *letters: Letter) -> dict[int, Answer]:
    return dict(exchange(grid, letters, poll_s=0.01))


def test_a_node_has_two_messages_at_most_and_every_one_is_answered() -> None:
    grid = PostOffice({7: echo, 8: echo})
    found = answers_of(grid, *(letter(node) for node in (7, 7, 7, 8, 7)))
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert not any(isinstance(answer, BlockFailure) for answer in found.values())
    assert grid.most == {7: 2, 8: 1}


def test_a_silent_node_costs_its_own_deadline_and_nobody_elses() -> None:
    began = time.monotonic()
    found = answers_of(PostOffice({7: silent, 8: echo}), letter(7, 0.2), letter(8), letter(7, 0.3))
    assert 0.5 <= time.monotonic() - began < 2.0  # one after the other: 0.2 s, then 0.3 s
    assert found[0] == BlockFailure("no reply within 0.2 s", timed_out=True)
    assert found[2] == BlockFailure("no reply within 0.3 s", timed_out=True)
    assert isinstance(found[1], Message)


def test_a_message_lives_longer_than_it_is_waited_for_and_the_one_before_it() -> None:
    lives: list[float] = []

    def noted(message: Message) -> Message:
        lives.append(message.metadata.ttl)
        return echo(message)

    answers_of(PostOffice({7: noted}), letter(7, 1.0), letter(7, 2.0))
    assert lives == [1.0 + SPARE_S, 3.0 + SPARE_S]


def hostile(message: Message) -> Message:
    if message.metadata.message_id == "1":
        raise AttributeError("'NoneType' object has no attribute 'vals'")
    return echo(message)


def test_what_flower_chokes_on_is_the_failure_of_that_message_alone() -> None:
    found = answers_of(PostOffice({7: hostile, 8: echo}), letter(7), letter(7), letter(8))
    assert isinstance(found[0], BlockFailure)
    assert found[0].status == "refused"
    assert found[0].reason.startswith("malformed message: AttributeError")
    assert isinstance(found[1], Message)
    assert isinstance(found[2], Message)


def test_a_superlink_that_is_gone_ends_the_run() -> None:
    def gone(_: Message) -> Message:
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        answers_of(PostOffice({7: gone}), letter(7))


def test_an_upload_that_stalls_costs_its_own_deadline_alone() -> None:
    def stalled(message: Message) -> Message:
        time.sleep(4)  # as Flower does for what a killed client did not send
        return echo(message)

    began = time.monotonic()
    found = answers_of(PostOffice({7: stalled, 8: echo}), letter(7, 0.2), letter(8), letter(8))
    assert time.monotonic() - began < 3.0
    assert found[0] == BlockFailure("no reply within 0.2 s", timed_out=True)
    assert isinstance(found[2], Message)


def test_nobody_answers_in_the_name_of_another_node() -> None:
    def forged(message: Message) -> Message:
        reply = echo(message)
        reply.metadata.__dict__["_src_node_id"] = 8
        return reply

    found = answers_of(PostOffice({7: forged}), letter(7))
    assert found[0] == BlockFailure("the reply is to another message", "refused")


RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [
        (RAISED, "<class 'shared_models.errors.DataError'>:<'no such file'>", "no such file"),
        (RAISED, "<class 'ZeroDivisionError'>:<'by zero'>", "ZeroDivisionError: by zero"),
        (RAISED, "", "Flower error 2"),
        (ErrorCode.NODE_UNAVAILABLE, "Error: Node", "its device is not connected any more"),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "Error: Late", "its device's reply came too late"),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "3 workers died of it", "3 workers died of it"),
    ],
)
def test_flowers_reasons_are_unwrapped(code: int, reason: str, told: str) -> None:
    PostOffice({})  # makes this process one that may make messages
    question = Message(RecordDict(), 7, "query.x")
    assert reason_of(Message(Error(code, reason), reply_to=question)) == told


ROUNDS = ("stages.train.rounds=2",)


def run_again(folder: RunFolder, rounds: int) -> None:
    """Leaves the folder as if the run had been killed after this many rounds."""
    for path in sorted(folder.checkpoints.iterdir())[rounds:]:
        path.unlink()


def test_a_run_that_is_resumed_under_other_node_ids_has_the_same_bytes(tmp_path: Path) -> None:
    config = config_of(*ROUNDS)
    whole, _ = train(config, fleet(config, 71, 72), tmp_path / "whole")
    again, _ = train(config, fleet(config, 71, 72), tmp_path / "again")
    run_again(again, 1)
    again, told = train(config, fleet(config, 5, 4), again.path, resume=True)
    assert told == []
    assert sha256_of(again.model_file) == sha256_of(whole.model_file)


def test_clients_that_are_not_connected_fail_in_their_rounds_with_that_reason(
    tmp_path: Path,
) -> None:
    config = config_of(*ROUNDS, "stages.train.min_clients=4")
    folder, _ = train(config, fleet(config, 71, 72), tmp_path / "run")
    run_again(folder, 1)
    folder, told = train(config, fleet(config, 71, places=2), folder.path, resume=True)
    assert told == [
        "clients [1, 3, 5, 7, 9, 11] are not connected: their rounds go on without them"
    ]
    last = folder.records()[-1]
    assert {failure.reason for failure in last.failures} == {"not connected"}
    assert all(failure.client_id % 2 for failure in last.failures)
    assert last.clients_aggregated + len(last.failures) == 10


def test_a_client_that_lies_about_its_data_size_is_refused_and_the_round_goes_on(
    tmp_path: Path,
) -> None:
    config = config_of("stages.train.rounds=1", "stages.train.clients_per_round=12")
    grid = fleet(config, 71, 72)
    honest = grid.nodes[72]

    def liar(message: Message) -> Message | None:
        reply = honest(message)
        if reply is not None and "hello" in reply.content:
            told = decode_hello(reply.content)
            much = (told.examples[0] * 1000, *told.examples[1:])
            reply.content = encode_hello(replace(told, examples=much))
        return reply

    grid.nodes[72] = liar
    (record,) = train(config, grid, tmp_path / "run")[0].records()
    assert [failure.client_id for failure in record.failures] == [1]
    assert record.failures[0].status == "refused"
    assert record.clients_aggregated == 11


def test_a_node_that_cannot_say_who_it_is_is_left_out_by_name(tmp_path: Path) -> None:
    config = config_of("stages.train.rounds=1", "stages.train.clients_per_round=6")

    def broken(message: Message) -> Message:
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "<class 'OSError'>:<'no data'>")
        return Message(error, reply_to=message)

    grid = fleet(config, 71, places=2)
    grid.nodes[72] = broken
    folder, told = train(config, grid, tmp_path / "run")
    assert told == ["node 72 is left out: OSError: no data"]
    assert folder.manifest()["population"]["clients"] == 6


BRIEF = RollTimes(connect_s=0.3, answer_s=0.3)


def test_the_roll_is_called_until_enough_have_come() -> None:
    config = config_of()
    grid = fleet(config, 71, places=2)
    late = Device(config, 1, 2, 72)

    def first(message: Message) -> Message | None:
        grid.nodes.setdefault(72, late)  # connects when the first has answered
        return Device(config, 0, 2, 71)(message)

    grid.nodes[71] = first
    assert sorted(call_roll(grid, Enough(12), RollTimes(5.0)).hellos) == [71, 72]


def test_who_reads_its_data_for_long_is_waited_for_unless_there_are_enough() -> None:
    def slow(message: Message) -> Message | None:
        return Device(config, 1, 2, 72)(message) if time.monotonic() - began > 1.0 else None

    config = config_of()
    grid = PostOffice({71: Device(config, 0, 2, 71), 72: slow})
    for wanted, found in ((12, [71, 72]), (6, [71])):
        began = time.monotonic()
        roll = call_roll(grid, Enough(wanted), RollTimes(connect_s=0.3, answer_s=5.0))
        assert sorted(roll.hellos) == found


def test_who_watches_a_run_is_told_for_whom_it_waits() -> None:
    config, told = config_of(), list[Event]()

    def second(message: Message) -> Message | None:
        return Device(config, 1, 2, 72)(message) if time.monotonic() - began > 3.0 else None

    began = time.monotonic()
    grid = PostOffice({71: Device(config, 0, 2, 71), 72: second})
    call_roll(grid, Enough(12), RollTimes(2.5, 60.0), observe=told.append)
    (waiting,) = told
    assert isinstance(waiting, Waiting)
    assert (waiting.clients, waiting.wanted, waiting.unanswered) == (6, 12, 1)
    assert 55 < waiting.seconds < 61
    assert describe(waiting).startswith("waiting for devices: 6 of 12 clients are here (up to ")


def test_without_any_answer_the_run_fails_and_says_why() -> None:
    with pytest.raises(RoundError, match="no node connected within"):
        call_roll(PostOffice({}), Enough(1), BRIEF)
    with pytest.raises(RoundError, match="node 7: no answer within"):
        call_roll(PostOffice({7: silent}), Enough(1), BRIEF)


def hello(*ids: int, each: int = 10, data: str = "a") -> Hello:
    return Hello(ids, tuple(each for _ in ids), False, data, {})


THEN = merge_hellos({7: hello(3, 1), 8: hello(2)})


def test_who_comes_back_keeps_its_place() -> None:
    told: list[str] = []
    now = merge_hellos({9: hello(1, 3), 4: hello(5)})
    found = rejoined(THEN.hosts, now, told.append)
    assert found.client_ids == THEN.client_ids
    assert found.node_of == {1: 9, 2: ABSENT, 3: 9}
    assert (found.connected, found.hosts) == (2, THEN.hosts)
    assert ["came after" in text for text in told] == [True, False]
    assert hosts_these((1, 3))({9: hello(1, 3)})
    assert not hosts_these((1, 2))({9: hello(1, 3)})


def test_who_lacks_labels_is_known_again() -> None:
    some = replace(hello(3, 1), labelled=(4, 0))
    then = merge_hellos({7: some, 8: hello(2)})
    assert then.labelled_of == {1: 0, 2: 10, 3: 4}
    hosts = hosts_in({"hosts": [asdict(host) for host in then.hosts]})
    again = rejoined(hosts, merge_hellos({9: some, 4: hello(2)}), lambda _: None)
    assert (again.labelled_of, again.examples_of) == (then.labelled_of, then.examples_of)
    assert THEN.labelled == ()


@pytest.mark.parametrize(
    ("hellos", "told"),
    [
        ({9: hello(1, 3, each=11)}, "client 1 has 11 examples, when the run began it had 10"),
        ({9: hello(2, data="b")}, "client 2 has data b, when the run began it had a"),
        ({9: hello(1, 2)}, "client 1 shares its node with"),
        ({9: hello(1), 8: hello(3)}, "client 1 is parted from others of its node"),
    ],
)
def test_a_client_that_is_not_what_it_was_is_named(hellos: dict[int, Hello], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        rejoined(THEN.hosts, merge_hellos(hellos), lambda _: None)


def test_two_nodes_that_claim_one_client_are_an_error_on_resume_too() -> None:
    with pytest.raises(RoundError, match="client 1 is claimed by node 9 and node 10"):
        merge_hellos({9: hello(1, 3), 10: hello(1)})
    assert THEN.hosts == (Hosted((1, 3), (10, 10), "a"), Hosted((2,), (10,), "a"))


def test_a_quorum_that_cannot_hold_is_told_before_the_first_round(
    tmp_path: Path,
) -> None:
    config = config_of("stages.train.min_clients=8")
    with pytest.raises(RoundError, match="6 of 6 clients are connected, the quorum is 8"):
        train(config, fleet(config, 71, places=2), tmp_path / "run")
    folder, _ = train(config, fleet(config, 71, 72), tmp_path / "run", resume=True)
    assert len(folder.records()) == 4


@pytest.mark.slow
def test_flowers_own_runtime_carries_a_run_into_the_servers_folder(tmp_path: Path) -> None:
    processes = BareFleet(tmp_path)
    try:
        processes.start_superlink()
        for place in range(2):
            processes.start_node(place, 2)
        config = DIGITS.replace("rounds = 4", "rounds = 2")
        number = processes.submit(config=config, run="digits-1")
        events = processes.state / "runs" / "digits-1" / "events.jsonl"
        processes.wait(lambda: events.exists() and '"event": "done"' in events.read_text(), 150)
    finally:
        processes.close()
    folder = RunFolder(events.parent)
    assert f'"flower_run": "{number}"' in events.read_text()
    assert folder.summary()["status"] == "done"
    assert [record.clients_aggregated for record in folder.records()] == [10, 10]
    model = sha256_of(folder.model_file)
    here = config_of(*ROUNDS)
    same, _ = train(here, fleet(here, 71, 72), tmp_path / "here")
    assert sha256_of(same.model_file) == model
