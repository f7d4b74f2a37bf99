"""How numbers and tables are told."""

from __future__ import annotations

from collections.abc import Sequence


def three_figures(value: float) -> str:
    """Returns a positive number with at least three figures, e.g. `3.12`, `31.2`, `3120`."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns line up in a terminal too."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
