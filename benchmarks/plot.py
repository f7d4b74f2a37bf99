"""The plot for the README: `python -m benchmarks.plot RESULT.json --out FILE.svg`.

Clients per second, one group of bars for each workload. The background is transparent and all
colours are of middle lightness, so that it can be read on a light page and on a dark one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.text import three_figures

INK = "#808890"  # readable on white and on black
# system -> (name, colour), from the top bar of a group to the bottom one
BARS = {
    "wildflower": ("Wildflower", "#d9822b"),
    "wildflower-inline": ("Wildflower, one process", "#e5b567"),
    "floor": ("bare loop", "#808890"),
    "pfl": ("pfl 0.6", "#3f8fce"),
    "flower": ("Flower 1.41", "#8f6fc4"),
}
TITLES = {
    "W1": "MLP\n1000 clients a round",
    "W1-100": "MLP\n100 a round",
    "W2": "small CNN\n100 a round",
    "W3": "1.66M CNN\n10 a round",
    "W4": "LSTM\n100 a round",
}


def speeds(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns clients per second by workload and system, out of a report of `compare`."""
    found: dict[str, dict[str, float]] = {}
    for row in report["medians"]:
        found.setdefault(row["workload"], {})[row["system"]] = row["clients_per_second"]
    return found


def draw(report: Mapping[str, Any]) -> Figure:
    """Returns the figure; every workload has an axis of its own, because they differ by 100."""
    found = speeds(report)
    systems = [name for name in BARS if any(name in own for own in found.values())]
    figure = Figure(figsize=(9, 0.75 + 0.34 * len(systems)), layout="constrained")
    figure.patch.set_alpha(0)
    figure.supxlabel(
        f"clients per second: longer is faster ({_made(report)})", fontsize=9, color=INK
    )
    many = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (workload, own) in zip(many, found.items(), strict=True):
        _draw_workload(axes, TITLES.get(workload, workload), [own.get(name, 0) for name in systems])
        axes.set_yticks(range(len(systems)), [BARS[name][0] for name in systems])
        for bar, name in zip(axes.patches, systems, strict=True):
            bar.set_facecolor(BARS[name][1])
        axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
        axes.tick_params(labelleft=axes is many[0])
    return figure


def _draw_workload(axes: Axes, title: str, values: Sequence[float]) -> None:
    bars = axes.barh(range(len(values)), values, height=0.72)
    axes.bar_label(
        bars,
        [three_figures(value) if value else "" for value in values],
        padding=2,
        fontsize=8,
        color=INK,
    )
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlim(0, max(values) * 1.35)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.patch.set_alpha(0)
    axes.spines[:].set_visible(False)


def _made(report: Mapping[str, Any]) -> str:
    """Returns on what machine and when, e.g. `2 cores of AMD EPYC, 2026-11-24`."""
    machine = report["machine"]
    return f"{machine['cores']} cores of {machine['cpu']}, {report['date']}"


def save(figure: Figure, path: Path, alt: str) -> None:
    """Writes an SVG whose text stays text; equal figures give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "wildflower"}):
        figure.savefig(path, metadata={"Date": None, "Title": alt}, transparent=True)


def main(
    result: Annotated[Path, typer.Argument(help="A file that benchmarks.compare wrote.")],
    out: Annotated[Path, typer.Option(help="The SVG.")] = Path("docs/images/simulation.svg"),
) -> None:
    """Draw clients per second of every system.

    Example: python -m benchmarks.plot benchmarks/results/RESULT.json
    """
    report = json.loads(result.read_text())
    save(draw(report), out, f"clients per second of federated simulators, {_made(report)}")
    print(out)


if __name__ == "__main__":
    typer.run(main)
