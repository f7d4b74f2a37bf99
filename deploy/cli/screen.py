"""Where a run stands, as one screen of a terminal: as wide as it is, no higher than it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Group
from rich.text import Text

from deploy.cli.standing import Standing
from deploy.report.words import duration, named, number

_LABEL, _VALUE, _METRICS, _ENDED = 12, 9, 4, 3
_MOST_SPARKS = 60
_TONES = {"aggregated": "green", "surplus": "dim", "refused": "red", "failed": "red"}
_SPARKS, _PLAIN_SPARKS = "▁▂▃▄▅▆▇█", "_.-=^"


@dataclass(frozen=True)
class Size:
    """What there is to draw on; a `plain` terminal has letters only."""

    width: int
    height: int
    plain: bool = False


def screen(stages: Sequence[Standing], now: float, size: Size) -> Group:
    """Returns what to show at a time: the stages that are over, and all of the newest one.

    Where there is no room for all lines, those that matter least are left away.
    """
    if not stages:
        return Group()
    newest = [line for line in _stage(stages[-1], now, size) if line.plain]
    room = max(0, size.height - 1 - len(newest))
    over = [_over(own) for own in stages[:-1]][-min(room, _ENDED) :] if room else []
    lines = [*over, *newest][: max(1, size.height - 1)]
    for line in lines:
        line.no_wrap = True
        line.truncate(size.width, overflow="ellipsis")
    return Group(*lines)


def _stage(own: Standing, now: float, size: Size) -> list[Text]:
    return [
        _head(own, now, size),
        _bar(own, size),
        *(_metric(name, values, size) for name, values in list(own.told.items())[:_METRICS]),
        _clients(own),
        _failure(own),
        _seconds(own.phases),
    ]


def _label(text: str) -> Text:
    return Text(f"{named(text):<{_LABEL}} ", style="dim")


def _head(own: Standing, now: float, size: Size) -> Text:
    name = Text(own.stage, style="bold")
    round_ = own.done if own.until is not None else min(own.done + 1, own.rounds)
    name.append(f"  round {round_} of {own.rounds}", style="not bold")
    return _apart(name, _clock(own, now, size), size.width)


def _clock(own: Standing, now: float, size: Size) -> Text:
    if own.until is not None:
        return Text(f"over after {duration(own.until - own.since)}")
    left = own.left(now)
    rest = "about " + duration(left) + " left" if left is not None else "no pace yet"
    so_far = f"{duration(now - own.since)}, " if size.width >= 70 else ""
    return Text(so_far + rest, style="cyan")


def _apart(left: Text, right: Text, width: int) -> Text:
    """Returns both on one line, as far apart as it is wide."""
    gap = max(2, width - left.cell_len - right.cell_len)
    return Text.assemble(left, " " * gap, right)


def _bar(own: Standing, size: Size) -> Text:
    share = min(1.0, own.came / own.wanted) if own.wanted else 1.0
    progress = own.progress
    back = progress.asked - progress.waiting
    told = f" {share:4.0%}"
    if own.until is None:
        told += f"  {back}/{progress.asked} clients are back"
    room = max(1, size.width - len(told))
    full = round(room * share)
    done, rest = ("#", "-") if size.plain else ("━", "━")
    tone = "green" if own.until is not None else "cyan"
    return Text.assemble((done * full, tone), (rest * (room - full), "bright_black"), told)


def _metric(name: str, values: Sequence[float], size: Size) -> Text:
    label, last = _label(name), f"{number(values[-1]):<{_VALUE}} "
    begun = f"  from {number(values[0])}" if len(values) > 1 else ""
    room = min(_MOST_SPARKS, size.width - label.cell_len - len(last) - len(begun))
    drawn = sparks(values, room, _PLAIN_SPARKS if size.plain else _SPARKS)
    return Text.assemble(label, (last, "bold"), (drawn, "cyan"), (begun, "dim"))


def sparks(values: Sequence[float], width: int, marks: str = _SPARKS) -> str:
    """Returns a small curve: of more values than there is room for, the mean of each few.

    Values that are not finite are left away.

    >>> sparks([0.0, 0.5, 1.0], 10), sparks([0.0, 0.0, 8.0, 8.0], 2), sparks([3.0], 5)
    ('▁▅█', '▁█', '▁')
    """
    finite = [value for value in values if math.isfinite(value)]
    count = min(max(width, 1), len(finite))
    edges = [k * len(finite) // count for k in range(count + 1)] if count else []
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    step = (len(marks) - 1) / ((high - low) or 1.0)
    return "".join(marks[round((value - low) * step)] for value in means)


def _clients(own: Standing) -> Text:
    if not own.fates:
        return Text()
    line = _label("clients")
    for place, (fate, count) in enumerate(own.fates.items()):
        word = "counted" if fate == "aggregated" else fate
        line.append(", " if place else "")
        line.append(f"{count:,} {word}", style=_TONES.get(fate, "yellow"))
    pace = own.clients_per_second()
    if pace is not None and own.until is None:
        line.append(f"   {number(pace, 3)} a second", style="dim")
    return line


def _failure(own: Standing) -> Text:
    if own.failure is None:
        return Text()
    round_, told = own.failure
    line = _label("last failure")
    line.append(f"client {told.client_id}, round {round_}, {told.status}: ", style="red")
    return line.append(told.reason)


def _seconds(phases: Mapping[str, float]) -> Text:
    spent = [f"{phase} {duration(seconds)}" for phase, seconds in phases.items() if seconds]
    return Text.assemble(_label("time"), ", ".join(spent)) if spent else Text()


def _over(own: Standing) -> Text:
    """Returns a stage that is over in one line."""
    told = [f"{named(name)} {number(values[-1])}" for name, values in own.told.items() if values]
    took = duration((own.until or own.heard) - own.since)
    rounds = f"{own.done} of {own.rounds} rounds"
    line = Text(f"{own.stage}  ", style="green")
    return line.append(", ".join((rounds, took, *told)), style="dim")
