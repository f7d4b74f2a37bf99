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


def line(name: str, x: Sequence[Any], y: Values, place: int = 0, **more: Any) -> Trace:
    """Returns a line through what is there of `y`; its dash and markers tell it apart, too."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
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


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Returns a layout with two named axes."""
    return {"xaxis": axis(x), "yaxis": axis(y), **more}
