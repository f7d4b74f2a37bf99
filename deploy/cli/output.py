"""What verbs print: JSON for scripts, tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def print_json(value: Any) -> None:
    """Prints a value as JSON on standard output."""
    print(json.dumps(value, indent=2))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
) -> None:
    """Prints rows as a table; columns whose name ends in a space are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(column.strip()), justify="right" if column.endswith(" ") else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # a label may look like markup
    console().print(table)


def console(*, stderr: bool = False) -> Console:
    """Returns a console that neither wraps nor colours when nobody looks at it."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=200)


def print_artefacts(artefacts: Iterable[Mapping[str, Any]]) -> None:
    """Prints what was measured of exported files, one line for each runtime, and what was not.

    No more than a terminal of 80 columns shows: the rest is in their descriptions.
    """
    told = list(artefacts)
    score = f"{_metric_of(told)} "
    columns = ("artefact", "runtime", "KB ", score, "torch ", "agree ", "median ms ")
    print_table(
        columns,
        [_artefact_cells(one, measured) for one in told for measured in one.get("measured", ())],
    )
    for runtime in dict.fromkeys(name for one in told for name in one.get("not_tried", ())):
        files = ", ".join(one["file"] for one in told if runtime in one.get("not_tried", ()))
        print(f"not tried on {runtime}, which this machine lacks (`make edge-env`): {files}")


def _metric_of(artefacts: Iterable[Mapping[str, Any]]) -> str:
    """Returns what their scores are called, if that is one thing."""
    names = {own["parity"]["metric"] for one in artefacts for own in one.get("measured", ())}
    return str(names.pop()).replace("_", " ") if len(names) == 1 else "score"


def _artefact_cells(artefact: Mapping[str, Any], measured: Mapping[str, Any]) -> tuple[str, ...]:
    parity, latency = measured["parity"], measured["latency"]
    return (
        artefact["file"],
        measured["runtime"],
        f"{artefact['size_bytes'] / 1000:.0f}",
        f"{parity['score']:.4f}",
        f"{parity['score_torch']:.4f}",
        f"{parity['agreement']:.4f}",
        f"{latency['median_ms']:.3f}",
    )
