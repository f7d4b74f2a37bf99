"""What it cost: bytes, seconds, memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from deploy.report.blocks import Block, Figure, Note, Section, Table
from deploy.report.findings import BLOCKS, carried, is_simulated
from deploy.report.learning import by_round
from deploy.report.plots import bars, line
from deploy.report.story import Story
from deploy.report.words import UNITS, duration, number, size

_PHASES = ("train", "aggregate", "evaluate", "checkpoint")


def costs(story: Story) -> Section:
    """Returns the section that says what the run cost."""
    if not story.records:
        return Section(
            "costs", "What did it cost?", (Note("No round has finished yet.", "missing"),)
        )
    blocks: list[Block] = [_seconds(story), _bytes(story), _memory(story), _table(story)]
    return Section("costs", "What did it cost?", tuple(blocks))


def _seconds(story: Story) -> Figure:
    rounds = [place for place, _ in story.placed()]
    spent = {
        phase: [getattr(record.seconds, phase) or 0.0 for record in story.records]
        for phase in _PHASES
    }
    total = sum(record.seconds.total for record in story.records)
    told = ", ".join(f"{phase} {duration(sum(own))}" for phase, own in spent.items())
    return Figure(
        "Where the seconds went",
        f"Stacked bar chart, a bar per round. All rounds: {duration(total)}; {told}.",
        [
            bars(
                phase, rounds, own, place, hovertemplate="%{y:.3~g} s " + phase + "<extra></extra>"
            )
            for place, (phase, own) in enumerate(spent.items())
        ],
        {**by_round(story, "seconds"), "barmode": "stack"},
        note="Evaluation and checkpoint may overlap with the next round's training.",
    )


def scaled(values: Sequence[float]) -> tuple[str, list[float]]:
    """Returns bytes in the unit that fits the largest of them.

    >>> scaled([2000, 1000])
    ('KB', [2.0, 1.0])
    """
    largest = max(values, default=0)
    for least, unit in UNITS:
        if largest >= least:
            return unit, [value / least for value in values]
    return "B", list(values)


def _bytes(story: Story) -> Figure:
    rounds = [place for place, _ in story.placed()]
    down = list(accumulate(record.bytes_down for record in story.records))
    up = list(accumulate(record.bytes_up for record in story.records))
    unit, values = scaled([*down, *up])
    whom = _whom(story)
    names = (f"to the {whom}", f"from the {whom}")
    parts = (values[: len(down)], values[len(down) :])
    return Figure(
        f"Bytes {carried(story)}, in all",
        f"Line chart over rounds: {size(down[-1])} to the {whom}, {size(up[-1])} from them.",
        [
            line(name, rounds, own, place, hovertemplate="%{y:.4~g} " + unit)
            for place, (name, own) in enumerate(zip(names, parts, strict=True))
        ],
        by_round(story, unit),
        note=BLOCKS if is_simulated(story) else "",
    )


def _whom(story: Story) -> str:
    return "simulated workers" if is_simulated(story) else "clients"


def _memory(story: Story) -> Figure:
    rounds = [place for place, _ in story.placed()]
    values = [record.rss_mb for record in story.records]
    peak = story.totals.peak_rss_mb
    note = "" if peak is None else f"Peak of all processes together: {number(peak)} MB."
    return Figure(
        "Memory of the server's process",
        f"Line chart over rounds: from {number(min(values))} to {number(max(values))} MB. {note}",
        [line("resident", rounds, values, 0, hovertemplate="%{y:.4~g} MB")],
        {**by_round(story, "MB"), "showlegend": False},
        note=note or "Peak of all processes: not recorded before the end.",
    )


def _of_one(story: Story, measured: float | None) -> tuple[str, str]:
    """Returns what one client sends; of a simulation an estimate, for its blocks send together."""
    if not is_simulated(story):
        return "bytes from a client, each time", size(measured)
    count = story.model.parameters or story.totals.params
    told = "-" if count is None else f"{size(4 * count)} ({count:,} parameters x 4 bytes)"
    return "one client alone, each time and way: an estimate", told


def _table(story: Story) -> Table:
    records, totals = story.records, story.totals
    updates = sum(record.clients_aggregated for record in records)
    seconds = sum(record.seconds.total for record in records)
    down, up = (sum(getattr(r, key) for r in records) for key in ("bytes_down", "bytes_up"))
    rows = (
        ("rounds", duration(seconds)),
        ("the whole run, with its exports", duration(totals.total_s)),
        ("until the first round", duration(totals.startup_s)),
        ("client updates a second", number(updates / seconds if seconds else None, 3)),
        (f"bytes to the {_whom(story)}", size(down)),
        (f"bytes from the {_whom(story)}", size(up)),
        _of_one(story, up / updates if updates else None),
        ("peak memory, all processes", f"{number(totals.peak_rss_mb)} MB"),
    )
    return Table("In numbers", ("what", "how much "), tuple(r for r in rows if "-" not in r[1][:1]))
