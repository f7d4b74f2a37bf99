"""What it cost: bytes, seconds, memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from deploy.report.blocks import Block, Figure, Note, Section, Table
from deploy.report.findings import BLOCKS, carried, is_simulated
from deploy.report.learning import by_round
from deploy.report.plots import Trace, bars, dots, line
from deploy.report.story import Story
from deploy.report.words import UNITS, duration, number, size

_PHASES = ("train", "aggregate", "evaluate", "checkpoint")
_MOST_MARKS = 30  # more would touch
_OVERLAP = (
    "The {} is what a round took until the next one could begin. A bar is higher than that where "
    "evaluation and checkpoint went on beside the training of the next round."
)


def costs(story: Story) -> Section:
    """Returns the section that says what the run cost."""
    if not story.records:
        return Section(
            "costs", "What did it cost?", (Note("No round has finished yet.", "missing"),)
        )
    blocks: list[Block] = [_seconds(story), _bytes(story), _memory(story), _table(story)]
    return Section("costs", "What did it cost?", tuple(blocks))


def _spent(story: Story) -> dict[str, list[float]]:
    """Returns the seconds of each phase, round by round."""
    return {
        phase: [getattr(record.seconds, phase) or 0.0 for record in story.records]
        for phase in _PHASES
    }


def _seconds(story: Story) -> Figure:
    rounds = [place for place, _ in story.placed()]
    spent = _spent(story)
    took = [record.seconds.total for record in story.records]
    told = ", ".join(f"{phase} {duration(sum(own))}" for phase, own in spent.items())
    phases = [
        bars(phase, rounds, own, place, hovertemplate="%{y:.3~g} s " + phase + "<extra></extra>")
        for place, (phase, own) in enumerate(spent.items())
    ]
    is_long = len(rounds) > _MOST_MARKS
    return Figure(
        "Where the seconds went",
        f"Stacked bar chart, a bar per round, and what the round took in all. All rounds: "
        f"{duration(sum(took))}; {told}.",
        [*phases, _whole(rounds, took, is_long=is_long)],
        {**by_round(story, "seconds"), "barmode": "stack"},
        note=_OVERLAP.format("line" if is_long else "mark"),
    )


def _whole(rounds: Sequence[int], took: Sequence[float], *, is_long: bool) -> Trace:
    """Returns what rounds took, as marks over their bars, or as steps where there are many."""
    made = dots("the round took", rounds, took, hovertemplate="%{y:.3~g} s in all")
    ink = {"color": "var(--ink)", "width": 2}
    if is_long:
        return {**made, "mode": "lines", "line": {**ink, "width": 1.5, "shape": "hvh"}}
    mark = {"symbol": "line-ew-open", "color": "var(--ink)", "size": 12, "line": ink}
    return {**made, "marker": mark}


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
    peaked = "not recorded before the end" if peak is None else f"{number(peak)} MB"
    looks = by_round(story, "MB")
    looks["yaxis"] |= {"rangemode": "tozero"}
    note = (
        f"What the process that {_doing(story)} held of the machine's memory when a round ended. "
        f"The most that all processes of the run held together: {peaked}."
    )
    return Figure(
        f"Memory of the process that {_doing(story)}",
        f"Line chart over rounds: from {number(min(values))} to {number(max(values))} MB. {note}",
        [line("memory", rounds, values, 0, hovertemplate="%{y:.4~g} MB")],
        {**looks, "showlegend": False},
        note=note,
    )


def _doing(story: Story) -> str:
    inline = story.manifest.get("engine") == "inline"
    return "trains and aggregates" if inline else "aggregates"


def _of_one(story: Story, measured: float | None) -> tuple[str, str]:
    """Returns what one client sends; of a simulation an estimate, for its blocks send together."""
    if not is_simulated(story):
        return "bytes from a client, each time", size(measured)
    count = story.model.parameters or story.totals.params
    told = "-" if count is None else f"{size(4 * count)} ({count:,} parameters x 4 bytes)"
    return "one client alone, each time and way: an estimate", told


def _table(story: Story) -> Table:
    records = story.records
    updates = sum(record.clients_aggregated for record in records)
    seconds = sum(record.seconds.total for record in records)
    down, up = (sum(getattr(r, key) for r in records) for key in ("bytes_down", "bytes_up"))
    rows = (
        *_times(story, seconds),
        ("client updates a second", number(updates / seconds if seconds else None, 3)),
        (f"bytes to the {_whom(story)}", size(down)),
        (f"bytes from the {_whom(story)}", size(up)),
        _of_one(story, up / updates if updates else None),
        ("peak memory, all processes", f"{number(story.totals.peak_rss_mb)} MB"),
    )
    return Table("In numbers", ("what", "how much "), tuple(r for r in rows if "-" not in r[1][:1]))


def _times(story: Story, seconds: float) -> list[tuple[str, str]]:
    """Returns where the time of the whole run went; the first two add up to the third."""
    total, start = story.totals.total_s, story.totals.startup_s
    rest = None if total is None else max(0.0, total - seconds)
    # The summary of a run that is not done was written when the model was trained.
    exported = story.status == "done" and story.files and is_simulated(story)
    more = "plan, sample predictions, exports" if exported else "plan, sample predictions"
    phases = ((f"in rounds: {name}", duration(sum(own))) for name, own in _spent(story).items())
    return [
        ("rounds, one after another", duration(seconds)),
        (f"around them: {more}", duration(rest)),
        ("the whole run" if exported else "the run until it was trained", duration(total)),
        ("from the program's start to round 1, loading included", duration(start)),
        *phases,
    ]
