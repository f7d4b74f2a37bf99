"""Several runs side by side: what differs in their configs, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from deploy.report.attendance import share_lost
from deploy.report.blocks import Block, Chapter, Figure, Note, Section, Table
from deploy.report.costs import scaled
from deploy.report.exports import frontier_figure, picks, points_of
from deploy.report.fairness import worst_tenth
from deploy.report.findings import BLOCKS, carried, final_value, is_score, is_simulated
from deploy.report.headline import status
from deploy.report.learning import parts_of
from deploy.report.plots import layout, line, rounds_axis, score_axis
from deploy.report.story import Story, value_of
from deploy.report.words import UNITS, duration, joined, named, number, plural, size, titled


def comparison(stories: Sequence[Story]) -> Chapter:
    """Returns what is to be said of several runs together."""
    sections = (
        Section("results", "What came of them?", (_results(stories), *_curves(stories))),
        Section("differences", "In what do they differ?", _differences(stories)),
        Section("all-files", "Which file to ship?", _files(stories)),
    )
    title = f"{plural(len(stories), 'run')} side by side"
    return Chapter("together", title, "", "plain", (_sentence(stories),), (), sections)


def _sentence(stories: Sequence[Story]) -> str:
    asked = {(story.metric, story.task, story.config["data"].get("name")) for story in stories}
    known = [(value, s) for s in stories if (value := final_value(s)) is not None]
    if len(asked) > 1:
        return f"{joined([story.name for story in stories])} answer different questions."
    if not known:
        return "None of them has been measured yet."
    first = known[0][1]
    best, winner = (min if first.less_is_better(first.metric) else max)(
        known, key=lambda own: own[0]
    )
    return f"{winner.name} has the best {named(winner.metric)} at its end: {number(best)}."


def _results(stories: Sequence[Story]) -> Table:
    columns = ("run", "status", "task", "metric", "at the end ", "worst tenth ", "rounds ")
    rows = tuple(_row(story) for story in stories)
    tenth = "Worst tenth: of the clients, on data that they also train on."
    note = f"{tenth} {_bytes_note(stories)}"
    return Table(
        "The runs", (*columns, "updates lost ", "time ", "bytes ", "to ship"), rows, note=note
    )


def _row(story: Story) -> tuple[str, ...]:
    told, metric = story.clients, story.metric
    values = told.metrics.get(metric) if told else None
    tenth = worst_tenth(values, less=story.less_is_better(metric)) if values else None
    seconds = story.totals.total_s or sum(record.seconds.total for record in story.records)
    wire = sum(record.bytes_down + record.bytes_up for record in story.records)
    return (
        story.name,
        status(story),
        story.task,
        named(metric),
        number(final_value(story)),
        number(tenth),
        str(len(story.records)),
        share_lost(story),
        duration(seconds),
        size(wire),
        ", ".join(pick.file.file for pick in picks(story.files)) or "-",
    )


def _curves(stories: Sequence[Story]) -> list[Block]:
    blocks: list[Block] = []
    for metric in dict.fromkeys(story.metric for story in stories):
        own = [story for story in stories if story.metric == metric and story.records]
        if own:
            blocks += [_over_rounds(own, metric), _over_seconds(own, metric)]
            blocks.append(_over_bytes(own, metric))
    return blocks


def _ends(stories: Sequence[Story]) -> str:
    return ", ".join(f"{story.name} {number(final_value(story))}" for story in stories)


def _figure(
    stories: Sequence[Story], metric: str, over: str, unit: str, x: Sequence[Any]
) -> Figure:
    name = named(metric)
    shown = unit if unit == over else f"{over}, {unit}"
    looks = layout(shown, name, hovermode="closest")
    measured = [[value_of(record, metric) for record in story.records] for story in stories]
    if all(is_score(story) for story in stories):
        looks["yaxis"] |= score_axis([value for values in measured for value in values])
    if over == "round":
        looks["xaxis"] = rounds_axis(shown, [at for own in x for at in own])
    return Figure(
        f"{titled(metric)} by {over}",
        f"Line chart of {name} over {over}, a line per run. At the end: {_ends(stories)}.",
        [
            line(
                story.name,
                own,
                values,
                place,
                parts_of(story, values),
                hovertemplate="%{y:.4~g}<extra>%{fullData.name}</extra>",
            )
            for place, (story, own, values) in enumerate(zip(stories, x, measured, strict=True))
        ],
        looks,
        wide=over == "round",
    )


def _over_rounds(stories: Sequence[Story], metric: str) -> Figure:
    x = [[place for place, _ in story.placed()] for story in stories]
    return _figure(stories, metric, "round", "round", x)


def _over_seconds(stories: Sequence[Story], metric: str) -> Figure:
    x = [list(accumulate(r.seconds.total for r in story.records)) for story in stories]
    return _figure(stories, metric, "time of the rounds", "s", x)


def _over_bytes(stories: Sequence[Story], metric: str) -> Figure:
    totals = [
        list(accumulate(r.bytes_down + r.bytes_up for r in story.records)) for story in stories
    ]
    unit, _ = scaled([own[-1] for own in totals])
    scale = {name: least for least, name in UNITS}.get(unit, 1)
    x = [[value / scale for value in own] for own in totals]
    ways = {carried(story) for story in stories}
    over = f"bytes {ways.pop()}" if len(ways) == 1 else "bytes"
    return replace(_figure(stories, metric, over, unit, x), note=_bytes_note(stories))


def _bytes_note(stories: Sequence[Story]) -> str:
    """Returns what bytes mean of those runs that are simulated."""
    simulated = [story.name for story in stories if is_simulated(story)]
    if not simulated or len(simulated) == len(stories):
        return f"Bytes {carried(stories[0])}. {BLOCKS}" if simulated else "Bytes on the wire."
    return (
        f"Bytes on the wire; of {joined(simulated)} between blocks of simulated clients. {BLOCKS}"
    )


def _differences(stories: Sequence[Story]) -> tuple[Block, ...]:
    flat = [flattened(_comparable(story, stories)) for story in stories]
    keys = dict.fromkeys(key for own in flat for key in own)
    rows = [
        (key, *(own.get(key, "-") for own in flat))
        for key in keys
        if len({own.get(key) for own in flat}) > 1
    ]
    if not rows:
        return (Note("Nothing: their configs are the same."),)
    whole = tuple(row for row in rows if all(row[0] in own for own in flat))
    rest = tuple(row for row in rows if row not in whole)
    columns = ("key", *(story.name for story in stories))
    tables = (
        Table("Keys of the configs", columns, whole, wide=True),
        Table(f"Keys that not all of them have ({len(rest)})", columns, rest, folded=True),
    )
    return tuple(table for table in tables if table.rows)


def _comparable(story: Story, stories: Sequence[Story]) -> dict[str, Any]:
    """Returns a config in which stages that not all runs have are told in a few words."""
    shared = set.intersection(*({_name(own) for own in s.config["stages"]} for s in stories))
    stages = story.config["stages"]
    others = {
        f"stages.{_name(own)}": f"{own.get('kind')}, {own.get('rounds', 0)} rounds"
        for own in stages
        if _name(own) not in shared
    }
    return {**story.config, "stages": [own for own in stages if _name(own) in shared], **others}


def _name(stage: Mapping[str, Any]) -> str:
    return str(stage.get("name", stage.get("kind")))


def flattened(config: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Returns a config's keys as the command line addresses them.

    >>> flattened({"seed": 1, "stages": [{"name": "train", "rounds": 3}]})
    {'seed': '1', 'stages.train.name': 'train', 'stages.train.rounds': '3'}
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flattened(value, f"{before}{key}.")
        elif isinstance(value, list) and all(isinstance(own, dict) for own in value) and value:
            for own in value:
                found |= flattened(own, f"{before}{key}.{_name(own)}.")
        else:
            found[f"{before}{key}"] = str(value)
    return found


def _files(stories: Sequence[Story]) -> tuple[Block, ...]:
    points = points_of(stories)
    answers = {(f.answer, f.labels, f.input.shape) for story in stories for f in story.files}
    if not points:
        return (Note("None of the runs has exported a file.", "missing"),)
    if len(answers) > 1:
        return (Note("Their files answer different questions: each run has its own table below."),)
    shown = [point for point in points if not point.stream] or points
    return tuple(frontier_figure(shown, over, by_run=True) for over in ("size", "latency"))
