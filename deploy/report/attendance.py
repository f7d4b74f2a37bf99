"""Who took part, who failed, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from deploy.report.blocks import Block, Figure, Note, Section, Table
from deploy.report.fairness import client_name
from deploy.report.findings import failed_gates
from deploy.report.learning import by_round
from deploy.report.plots import bars
from deploy.report.story import Story
from deploy.report.words import percent, plural
from server.records import OUTCOMES, RoundRecord
from server.summary import fault_table

FATES = ("aggregated", "refused", "failed", "late", "discarded", "surplus")
_COLOURS = (0, 1, 3, 4, 2, 5)
_LOST = FATES[1:-1]
_MOST_ROWS = 200
_MOST_REASONS = 15
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)")
_MEANING = (
    "Refused: the update was not usable (NaN, a wrong shape, too large). Failed: the client's "
    "training did. Late: it missed the deadline. Discarded: it was good, but its round began anew. "
    "Surplus: more were asked than needed, and enough others had answered; that is no failure."
)


def attendance(story: Story) -> Section:
    """Returns the section that says who took part and what failed."""
    blocks: list[Block] = []
    if story.reason and not failed_gates(story):
        blocks.append(Note(f"The run: {story.reason}", "warning"))
    if not story.records:
        blocks.append(Note("No round has finished yet.", "missing"))
        blocks += _notices(story)
        return Section("attendance", "Who took part, and what failed?", tuple(blocks))
    blocks += [_by_round(story), *_notices(story)]
    blocks += _reasons(story)
    if faults := fault_table(story.records):
        blocks.append(_faults(faults))
    return Section("attendance", "Who took part, and what failed?", tuple(blocks))


def _notices(story: Story) -> list[Block]:
    """Returns what a fleet's server noted, such as whom it left out and why."""
    rows = tuple((text,) for text in story.notices[-_MOST_ROWS:])
    caption = f"What the server noted ({len(rows)})"
    return [Table(caption, ("note",), rows, folded=len(rows) > 12)] if rows else []


def fates(record: RoundRecord) -> tuple[int, ...]:
    """Returns how many of a round's clients met each of `FATES`: each is in one.

    Of the late ones those who missed the deadline have a reason; the others were not needed.
    """
    status = Counter(failure.status for failure in record.failures)
    refused = min(record.clients_failed, status["refused"])
    late = min(record.clients_late, status["late"])
    return (
        record.clients_aggregated,
        refused,
        record.clients_failed - refused,
        late,
        record.clients_discarded,
        record.clients_late - late,
    )


def totals(records: Sequence[RoundRecord]) -> dict[str, int]:
    """Returns how many clients met each of `FATES` in all rounds."""
    sums = [sum(column) for column in zip(*map(fates, records), strict=True)] or [0] * len(FATES)
    return dict(zip(FATES, sums, strict=True))


def lost(records: Sequence[RoundRecord]) -> dict[str, int]:
    """Returns how many clients met each fate that is a loss, of those that somebody met."""
    return {fate: count for fate, count in totals(records).items() if count and fate in _LOST}


def needed(records: Sequence[RoundRecord]) -> int:
    """Returns how many clients were asked, without those that turned out as surplus."""
    return sum(count for fate, count in totals(records).items() if fate != "surplus")


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
        {**by_round(story, "clients"), "barmode": "stack"},
        note=_MEANING if len(told.split(",")) > 1 else "",
        wide=True,
    )


def _reasons(story: Story) -> list[Block]:
    found = [(r, failure) for r in story.records for failure in r.failures]
    if not found:
        return [Note("No client failed, was refused or missed a deadline.")]
    often = _often(story)
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
    columns: tuple[str, ...] = (
        "stage",
        "stage's round ",
        "client",
        "status",
        "reason",
        "injected fault",
    )
    caption = f"Every failure ({len(found)})"
    if len(found) > _MOST_ROWS:
        caption = f"The last {_MOST_ROWS} of {len(found)} failures; metrics.jsonl has all"
    if not victims:
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    return [often, Table(caption, columns, rows, folded=len(rows) > 12)]


def _often(story: Story) -> Table:
    """Returns why clients did not count; its numbers add up to those of the chart."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for record in story.records:
        for own in record.failures:
            kind = (own.status, *_NUMBER.split(own.reason))
            groups.setdefault(kind, []).append(own.reason)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = [(status, ranged(own), str(len(own))) for (status, *_), own in ordered]
    if rest := sum(int(row[2]) for row in rows[_MOST_REASONS:]):
        rows = [
            *rows[:_MOST_REASONS],
            ("-", "other reasons: the table of every failure", str(rest)),
        ]
    sums = totals(story.records)
    more = {"discarded": "its round began anew", "surplus": "enough others had answered"}
    rows += [(fate, why, str(sums[fate])) for fate, why in more.items() if sums[fate]]
    return Table("Why clients did not count", ("status", "reason", "times "), tuple(rows))


def ranged(reasons: Sequence[str]) -> str:
    """Returns reasons that differ in numbers as one, with the range of each number.

    >>> ranged(["it took 12.5 s, 3 s are allowed", "it took 40 s, 3 s are allowed"])
    'it took 12.5 to 40 s, 3 s are allowed'
    """
    columns = zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True)
    shown = (_span(column) for column in columns)
    return _NUMBER.sub(lambda _: next(shown), reasons[0])


def _span(column: Sequence[str]) -> str:
    ordered = sorted(set(column), key=float)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _faults(faults: dict[str, dict[str, int]]) -> Table:
    rows = tuple(
        (kind, str(told["injected"]), *(str(told[outcome]) for outcome in OUTCOMES))
        for kind, told in faults.items()
    )
    columns = ("fault", "injected ", *(f"{outcome} " for outcome in OUTCOMES))
    note = (
        "Faults that the config has simulated clients suffer on purpose. Late are here also those "
        "that were surplus."
    )
    return Table("Injected faults, and what became of their clients", columns, rows, note=note)


def share_lost(story: Story) -> str:
    """Returns e.g. `23 of 216 (11 %)`: those whose update did not count."""
    asked, gone = needed(story.records), sum(lost(story.records).values())
    return f"{gone:,} of {asked:,} ({percent(gone / asked if asked else 0)})"
