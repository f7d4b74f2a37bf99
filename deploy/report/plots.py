"""Plotly's dictionaries, made short. Colours are `var(--name)`: the page knows what they look like.

Text in a plot may look like markup, which plotly would draw: it passes through `plain`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, TypeAlias

Trace: TypeAlias = dict[str, Any]
Values: TypeAlias = Sequence[float | None]

_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
_WIDE, _FEW = 0.4, 12
MANY = 60  # points: then markers are in the way


def plain(text: object) -> str:
    """Returns text as plotly shows it unchanged.

    >>> plain("<b>3 & 4")
    '&lt;b&gt;3 &amp; 4'
    """
    return html.escape(str(text), quote=False)


def colour(place: int) -> str:
    """Returns one of six colours that people with any colour vision tell apart."""
    return f"var(--c{place % 6 + 1})"


def line(
    name: str, x: Sequence[Any], y: Values, place: int = 0, parts: Sequence[int] = (), **more: Any
) -> Trace:
    """Returns a line through what is there of `y`; its dash and markers tell it apart, too.

    It has a gap between points of different `parts`.
    """
    points = _with_gaps(x, y, parts or [0] * len(x))
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(points) <= MANY else "lines",
        "name": plain(name),
        "x": [a for a, _ in points],
        "y": [b for _, b in points],
        "line": {"color": colour(place), "width": 2, "dash": _DASHES[place % 4]},
        "marker": {"symbol": _SYMBOLS[place % 6], "size": 5, "color": colour(place)},
        **more,
    }


def _with_gaps(x: Sequence[Any], y: Values, parts: Sequence[int]) -> list[tuple[Any, float | None]]:
    """Returns the points that there are, with an empty one between parts.

    >>> _with_gaps([1, 2, 3, 4], [5.0, None, 6.0, 7.0], [0, 0, 0, 1])
    [(1, 5.0), (3, 6.0), (None, None), (4, 7.0)]
    """
    points: list[tuple[Any, float | None]] = []
    last = None
    for at, value, part in zip(x, y, parts, strict=True):
        if value is None:
            continue
        if last not in {None, part}:
            points.append((None, None))
        points.append((at, value))
        last = part
    return points


def bars(name: str, x: Sequence[Any], y: Sequence[Any], place: int = 0, **more: Any) -> Trace:
    """Returns bars."""
    marker = {"color": colour(place), "line": {"width": 0}}
    return {
        "type": "bar",
        "name": plain(name),
        "x": list(x),
        "y": list(y),
        "marker": marker,
        **more,
    }


def dots(name: str, x: Values, y: Values, place: int = 0, **more: Any) -> Trace:
    """Returns points."""
    marker = {"symbol": _SYMBOLS[place % 6], "size": 9, "color": colour(place)}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "x": list(x),
        "y": list(y),
        "marker": marker,
        **more,
    }


def heat(x: Sequence[str], y: Sequence[str], z: Sequence[Sequence[float]], **more: Any) -> Trace:
    """Returns a heat map: a row of `z` for each of `y`."""
    steps = [[k / 4, f"var(--heat{k})"] for k in range(5)]
    shown = {"x": list(map(plain, x)), "y": list(map(plain, y)), "z": [list(row) for row in z]}
    return {"type": "heatmap", **shown, "colorscale": steps, "xgap": 1, "ygap": 1, **more}


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Returns an axis that says what it measures."""
    return {"title": {"text": plain(title)}, **more}


def score_axis(values: Values) -> dict[str, Any]:
    """Returns how an axis of scores from 0 to 1 is laid out: whole, or close around the data.

    >>> score_axis([0.1, None, 0.9]), score_axis([0.5, 1.5])
    ({'range': [-0.02, 1.02]}, {})
    """
    there = [value for value in values if value is not None]
    if not there or min(there) < 0 or max(there) > 1:
        return {}
    if max(there) - min(there) > _WIDE:
        return {"range": [-0.02, 1.02]}  # room for the markers at its ends
    return {"autorangeoptions": {"clipmin": 0, "clipmax": 1}}


def rounds_axis(title: str, rounds: Sequence[int]) -> dict[str, Any]:
    """Returns an axis of rounds, whose numbers are whole also where there are few."""
    few = len(rounds) > 0 and max(rounds) <= _FEW
    return axis(title, dtick=1) if few else axis(title)


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Returns a layout with two named axes."""
    return {"xaxis": axis(x), "yaxis": axis(y), **more}
