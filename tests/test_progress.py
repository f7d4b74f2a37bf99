"""What the terminal shows of a run: where it stands, on one screen, and plain lines elsewhere."""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from deploy.cli.progress import Display
from deploy.cli.screen import Size, screen, sparks
from deploy.cli.standing import Standing, after, ended
from deploy.events import Event, ExportStarted
from server.events import BlockFinished, Notice, RoundFinished, StageStarted
from server.records import RoundRecord
from tests.conftest import ROOT
from tests.told_runs import RECORD, records

BEGUN = StageStarted("train", 5, 0, 20, 10)
TUNED = StageStarted("tune", 3, 0, 20, 10)
USUAL = Size(80, 24)
WIDTHS = (40, 60, 80, 140)


def learning(rounds: int) -> list[Event]:
    """Events of stages of which so many rounds are over, and a block of the next has come back."""
    events: list[Event] = [BEGUN]
    for record in records(rounds):
        events += [TUNED] if (record.stage, record.round) == ("tune", 1) else []
        events += [BlockFinished(record.stage, record.round, 10), RoundFinished(record)]
    return events


def standing(events: Sequence[Event], seconds: float = 2.0) -> tuple[Standing, ...]:
    """Where a run stands whose events came so many seconds apart."""
    stages: tuple[Standing, ...] = ()
    for place, event in enumerate(events):
        stages = after(stages, event, place * seconds)
    return stages


def drawn(stages: Sequence[Standing], now: float, size: Size) -> list[str]:
    console = Console(width=size.width, record=True, file=io.StringIO())
    console.print(screen(stages, now, size))
    return console.export_text().splitlines()


def shown(text: str, events: Sequence[Event], size: Size = USUAL) -> bool:
    return text in "\n".join(drawn(standing(events), 2.0 * len(events), size))


def test_what_is_left_follows_from_the_pace_and_is_counted_down() -> None:
    (own,) = standing([BEGUN, *[BlockFinished("train", 1, 1)] * 4])
    assert (own.came, own.wanted) == (4, 50)
    assert own.clients_per_second() == pytest.approx(0.5)
    assert own.left(now=8.0) == pytest.approx(46 / 0.5)
    assert own.left(now=18.0) == pytest.approx(46 / 0.5 - 10)
    assert own.left(now=1000.0) == 0.0


def test_nothing_is_left_to_say_of_a_stage_that_has_no_pace_or_is_over() -> None:
    (own,) = standing([BEGUN])
    assert own.left(now=5.0) is None
    (over,) = standing(learning(5))
    assert over.until == 2.0 * 10
    assert over.left(now=30.0) is None


def test_the_pace_is_that_of_the_newest_rounds() -> None:
    ends = (100.0, 102.0, 104.0, 106.0, 108.0)
    stages = after((), replace(BEGUN, rounds=100), 0.0)
    for record, now in zip(records(5), ends, strict=True):
        stages = after(stages, RoundFinished(record), now)
    # Of the five newest ends the first is where the pace begins: 40 clients in 8 s.
    assert stages[0].clients_per_second() == pytest.approx(40 / 8)


def test_a_resumed_stage_begins_where_it_was() -> None:
    (own,) = standing([replace(BEGUN, done=3)])
    assert (own.came, own.done) == (30, 3)
    assert shown("round 4 of 5", [replace(BEGUN, done=3)])


def test_a_round_that_is_told_late_counts_in_its_own_stage() -> None:
    late = [event for event in learning(6) if event != TUNED]
    place = late.index(RoundFinished(records()[4]))
    train, tune = standing([*late[:place], TUNED, *late[place:]])
    assert (train.done, tune.done) == (5, 1)
    assert len(train.told["accuracy"]) == 5


def test_everybody_who_was_asked_is_in_one_count() -> None:
    (own,) = standing(learning(3))
    assert own.fates == {"aggregated": 24, "refused": 3, "late": 3}
    assert own.failure == (3, RECORD.failures[-1])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rounds", [0, 1, 4, 5, 7, 8])
def test_the_screen_is_never_wider_than_the_terminal(width: int, rounds: int) -> None:
    events = learning(rounds)
    lines = drawn(standing(events), 2.0 * len(events), Size(width, 24))
    assert max(map(len, lines)) <= width
    assert all(lines)


@pytest.mark.parametrize("height", range(1, 14))
def test_the_screen_is_never_higher_than_the_terminal(height: int) -> None:
    lines = drawn(standing(learning(7)), 40.0, Size(80, height))
    assert len(lines) <= max(1, height - 1)
    assert any(line.startswith("tune  round") for line in lines)


def test_it_says_what_a_watcher_asks() -> None:
    events = [*learning(4), BlockFinished("train", 5, 6)]
    for told in (
        "train  round 5 of 5",
        "6/10 clients are back",
        "accuracy     0.6500    ▁▃▆█  from 0.5000",
        "train loss   1.500     ▁▁▁▁  from 1.500",
        "32 counted, 4 refused, 4 late",
        "client 4, round 4, late: an answer after 60 s",
        "train 4.8 s, aggregate 0.4 s, evaluate 2.4 s",
    ):
        assert shown(told, events), told


def test_a_stage_that_is_over_is_a_line() -> None:
    lines = drawn(standing(learning(6)), 30.0, USUAL)
    assert lines[0] == "train  5 of 5 rounds, 20 s, accuracy 0.7000, train loss 1.500"
    assert lines[1].startswith("tune  round 2 of 3")


def test_a_plain_terminal_gets_letters_only() -> None:
    lines = drawn(standing(learning(4)), 20.0, Size(80, 24, plain=True))
    assert "\n".join(lines).replace("…", "").isascii()


def test_what_is_told_looks_like_markup_and_is_none() -> None:
    failures = (replace(RECORD.failures[0], reason="[red]x[/red] [bold"),)
    hostile = replace(RECORD, failures=failures, stage="[b]")
    lines = drawn(
        standing([replace(BEGUN, stage="[b]"), RoundFinished(hostile)]), 4.0, Size(80, 24)
    )
    assert lines[0].startswith("[b]  round 2")
    assert any("[red]x[/red] [bold" in line for line in lines)


def test_stages_that_end_do_not_go_on() -> None:
    stages = ended(standing(learning(2)), now=99.0)
    assert stages[0].until == 99.0
    assert "over after 1 min 39 s" in drawn(stages, 200.0, USUAL)[0]


def test_a_stage_that_begins_again_takes_the_place_of_what_it_was() -> None:
    again = replace(BEGUN, done=2)
    stages = standing([*learning(2), again, BlockFinished("train", 3, 4)])
    assert [(own.stage, own.until, own.done) for own in stages] == [("train", None, 2)]


def test_a_curve_leaves_away_what_is_no_number() -> None:
    assert sparks([math.nan, 0.0, math.inf, 1.0], 10) == sparks([0.0, 1.0], 10)
    assert sparks([math.nan], 10) == ""


def test_no_round_is_lost_when_two_threads_tell() -> None:
    """Evaluation runs behind the next round, and ends in a thread of its own."""
    count = 500
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    display = Display(console)
    display(replace(BEGUN, rounds=count))

    def tell_blocks() -> None:
        for number in range(count):
            display(BlockFinished("train", number + 1, 1))

    thread = threading.Thread(target=tell_blocks)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        for number in range(count):
            display(RoundFinished(replace(RECORD, stage="train", round=number + 1)))
        thread.join()
        display(ExportStarted("export"))
    finally:
        sys.setswitchinterval(before)
    assert isinstance(console.file, io.StringIO)
    screen_of = console.file.getvalue()
    assert f"{count * RECORD.clients_aggregated} counted" in screen_of.replace(",", "")


def told_to(console: Console, events: Sequence[Event]) -> str:
    assert isinstance(console.file, io.StringIO)
    with Display(console) as display:
        for event in events:
            display(event)
    return console.file.getvalue()


def test_elsewhere_than_on_a_terminal_there_are_plain_lines() -> None:
    told = told_to(Console(file=io.StringIO(), width=200), [*learning(2), Notice("mind the gap")])
    lines = told.splitlines()
    assert lines[0] == "train: 5 rounds, 10 of 20 clients each"
    assert [line.split(":")[0] for line in lines[1:]] == ["train 1", "train 2", "note"]
    assert "\x1b" not in told


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_gets_plain_lines_too(term: str) -> None:
    console = Console(
        file=io.StringIO(),
        width=200,
        force_terminal=True,
        _environ={"TERM": term},
        color_system=None,
    )
    assert told_to(console, learning(2)).splitlines()[-1].startswith("train 2: 8/10 clients")


def test_on_a_terminal_the_last_screen_stays_and_the_cursor_comes_back() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    told = told_to(console, [*learning(8), ExportStarted("export")])
    assert told.endswith("export: converting, quantizing, measuring\n")
    assert told.rindex("\x1b[?25h") > told.rindex("\x1b[?25l")
    assert "over after" in told[told.rindex("tune") :]


def test_a_stage_after_an_export_does_not_draw_over_it() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    told = told_to(console, [*learning(5), ExportStarted("export"), TUNED])
    after_export = told[told.index("measuring\n") :]
    assert "\x1b[1A" not in after_export
    assert "tune" in after_export


def test_how_a_round_without_a_measurement_looks() -> None:
    bare: RoundRecord = replace(RECORD, eval=None, clients_eval=None, train_loss=None, failures=())
    lines = drawn(standing([BEGUN, RoundFinished(bare)]), 4.0, USUAL)
    assert [line.split("  ")[0] for line in lines][2:] == ["clients", "time"]


def test_the_screen_in_the_docs_is_the_one_that_is_drawn() -> None:
    events = [*learning(7), BlockFinished("tune", 3, 4)]
    screen_of = drawn(standing(events), 2.0 * len(events), USUAL)
    assert "\n".join(screen_of) in (ROOT / "docs/run.md").read_text()
