"""Who took part, who failed, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from deploy.report.blocks import Block, Figure, Note, Section, Table
from deploy.report.fairness import client_name
from deploy.report.findings import failed_gates
from deploy.report.learning import stage_marks
from deploy.report.plots import bars, layout
from deploy.report.story import Story
from deploy.report.words import percent, plural
from server.records import OUTCOMES, RoundRecord
from server.summary import fault_table

FATES = ("aggregated", "refused", "failed", "late", "discarded")
_COLOURS = (0, 1, 3, 4, 5)
_MOST_ROWS = 200
_MEANING = (
    "Refused: the update was not usable (NaN, a wrong shape, too large). Failed: the client's "
    "training did. Late: it missed the deadline, or enough others had answered. Discarded: it was "
    "good, but its round began anew."
)


def attendance(story: Story) -> Section:
    """Returns the section that says who took part and what failed."""
    blocks: list[Block] = []
    if story.reason and not failed_gates(story):
        blocks.append(Note(f"The run: {story.reason}", "warning"))
    if not story.records:
        blocks.append(Note("No round has finished yet.", "missing"))
        return Section("attendance", "Who took part, and what failed?", tuple(blocks))
    blocks.append(_by_round(story))
    blocks += _reasons(story)
    if faults := fault_table(story.records):
        blocks.append(_faults(faults))
    return Section("attendance", "Who took part, and what failed?", tuple(blocks))


def fates(record: RoundRecord) -> tuple[int, ...]:
    """Returns how many of a round's clients met each of `FATES`: each is in one."""
    status = Counter(failure.status for failure in record.failures)
    refused = min(record.clients_failed, status["refused"])
    return (
        record.clients_aggregated,
        refused,
        record.clients_failed - refused,
        record.clients_late,
        record.clients_discarded,
    )


def totals(records: Sequence[RoundRecord]) -> dict[str, int]:
    """Returns how many clients met each of `FATES` in all rounds."""
    sums = [sum(column) for column in zip(*map(fates, records), strict=True)] or [0] * len(FATES)
    return dict(zip(FATES, sums, strict=True))


def _by_round(story: Story) -> Figure:
    rounds = [place for place, _ in story.placed()]
    columns = list(zip(*map(fates, story.records), strict=True))
    sums = totals(story.records)
    asked = sum(record.clients_selected for record in story.records)
    told = ", ".join(f"{count} {fate}" for fate, count in sums.items() if count)
    return Figure(
        "What became of the clients that were asked",
        f"Stacked bar chart, a bar per round. {plural(asked, 'time')} a client was asked: {told}.",
        [
            bars(fate, rounds, own, place, hovertemplate="%{y} " + fate + "<extra></extra>")
            for place, fate, own in zip(_COLOURS, FATES, columns, strict=True)
            if fate == "aggregated" or any(own)
        ],
        {**layout("round", "clients"), **stage_marks(story.stages), "barmode": "stack"},
        note=_MEANING if len(told.split(",")) > 1 else "",
        wide=True,
    )


def _reasons(story: Story) -> list[Block]:
    found = [(r, failure) for r in story.records for failure in r.failures]
    if not found:
        return [Note("No client failed, was refused or missed a deadline.")]
    counts = Counter((failure.status, _kind(failure.reason)) for _, failure in found)
    often = Table(
        "Why clients did not count",
        ("status", "reason", "times "),
        tuple((status, reason, str(n)) for (status, reason), n in counts.most_common(15)),
    )
    victims = {
        (r.stage, r.round, own.client_id): own.kind for r in story.records for own in r.injected
    }
    rows: tuple[tuple[str, ...], ...] = tuple(
        (
            record.stage,
            str(record.round),
            client_name(story, failure.client_id),
            failure.status,
            failure.reason,
            victims.get((record.stage, record.round, failure.client_id), ""),
        )
        for record, failure in found[-_MOST_ROWS:]
    )
    columns: tuple[str, ...] = ("stage", "round ", "client", "status", "reason", "injected fault")
    caption = f"Every failure ({len(found)})"
    if len(found) > _MOST_ROWS:
        caption = f"The last {_MOST_ROWS} of {len(found)} failures; metrics.jsonl has all"
    if not victims:
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    return [often, Table(caption, columns, rows, folded=len(rows) > 12)]


def _kind(reason: str) -> str:
    """Returns a reason without its numbers, so that equal ones are counted together.

    >>> _kind("it took 12.5 s, the deadline is 3 s")
    'it took # s, the deadline is # s'
    """
    words = [_masked(word) for word in reason.split()]
    return " ".join(words)


def _masked(word: str) -> str:
    bare = word.strip("(),;:")
    return word.replace(bare, "#") if bare and bare.replace(".", "", 1).isdigit() else word


def _faults(faults: dict[str, dict[str, int]]) -> Table:
    rows = tuple(
        (kind, str(told["injected"]), *(str(told[outcome]) for outcome in OUTCOMES))
        for kind, told in faults.items()
    )
    columns = ("fault", "injected ", *(f"{outcome} " for outcome in OUTCOMES))
    note = "Faults that the config has simulated clients suffer on purpose."
    return Table("Injected faults, and what became of their clients", columns, rows, note=note)


def share_lost(story: Story) -> str:
    """Returns e.g. `23 of 216 (11 %)`: those whose update did not count."""
    sums = totals(story.records)
    asked = sum(sums.values())
    lost = asked - sums["aggregated"]
    return f"{lost:,} of {asked:,} ({percent(lost / asked if asked else 0)})"
