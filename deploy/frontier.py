"""Size, latency and score of the files of several runs: which of them no other beats.

A file is on the frontier when it passed its gate and no other that did is at least as small, as
fast and as good (accuracy, mean IoU, R^2), and better in one of the three. `summary.json` and the
descriptions of the artefacts are read, nothing is run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.edge.artefact import Artefact, load_artefact
from deploy.edge.reference import FILE, load_reference
from shared_models.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#808890"  # readable on white and on black


@dataclass(frozen=True)
class Point:
    """A file in one of its runtimes. A stream's latency is that of a time step."""

    run: str
    file: str
    task: str
    quantization: str
    runtime: str
    params: int
    size_bytes: int
    median_ms: float
    metric: str
    score: float
    stream: bool = False
    passed: bool = True
    frontier: bool = False

    def beats(self, other: Point) -> bool:
        """Whether it is as good in all, and better in one."""
        ours, theirs = self._badness, other._badness
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    @property
    def _badness(self) -> tuple[float, float, float]:
        return self.size_bytes, self.median_ms, -self.score


def points_of(runs: Sequence[Path]) -> list[Point]:
    """Returns the files of these run folders, in order, and which are on the frontier.

    Raises `InputError` for a folder without artefacts, and for runs that answer other questions.
    """
    found: list[Point] = []
    answers: dict[tuple[str, tuple[str, ...], tuple[int, ...]], Path] = {}
    for run in {run.resolve(): run for run in runs}.values():
        for artefact, params in _artefacts(run):
            asked = (artefact.answer, artefact.labels, artefact.input.shape)
            answers.setdefault(asked, run)
            found += points_in(run.resolve().name, artefact, params)
    if len(answers) > 1:
        one, other, *_ = answers.values()
        raise InputError(
            f"{one} and {other} have other labels, answers or input: they cannot be compared"
        )
    return placed(found)


def warnings_of(runs: Sequence[Path]) -> list[str]:
    """Returns what makes figures of these runs differ besides their files."""
    different = {
        "were made on other machines: their latencies are not comparable": _machine,
        "were measured on other test examples: their scores are not comparable": _examples,
    }
    found = []
    for what, tell in different.items():
        first: dict[str, Path] = {}
        for run in runs:
            first.setdefault(tell(run), run)
        if len(first) > 1:
            found.append(f"{' and '.join(map(str, first.values()))} {what}")
    return found


def _machine(run: Path) -> str:
    from server.run_folder import RunFolder

    return json.dumps(RunFolder(run).manifest().get("machine"), sort_keys=True)


def _examples(run: Path) -> str:
    """Returns a hash of what was asked, and of what is right: not of what torch says of it."""
    from server.run_folder import RunFolder

    reference = load_reference(RunFolder(run).export / FILE)
    content = hashlib.sha256()
    for own in (reference.x, reference.targets):
        content.update(f"{own.shape} {own.dtype}".encode() + np.ascontiguousarray(own).tobytes())
    return content.hexdigest()


def placed(points: Sequence[Point]) -> list[Point]:
    """Returns the points with who of them is on the frontier."""
    return [_placed(point, points) for point in points]


def _artefacts(run: Path) -> list[tuple[Artefact, int]]:
    from server.run_folder import RunFolder

    folder = RunFolder(run)
    summary: dict[str, Any] = folder.summary()
    told = summary.get("artefacts", [])
    if not told:
        raise InputError(f"{run}: has no artefacts; make some with `wildflower export {run}`")
    try:
        files, params = [str(one["file"]) for one in told], int(summary["params"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder.summary_file}: damaged: it lacks files or parameters") from None
    return [(load_artefact(folder.export / file), params) for file in files]


def points_in(run: str, artefact: Artefact, params: int) -> list[Point]:
    """Returns a file of a run in each of its runtimes; none of them is on a frontier yet."""
    return [
        Point(
            run,
            artefact.file,
            artefact.task,
            artefact.quantization,
            measured.runtime,
            params,
            artefact.size_bytes,
            measured.latency.median_ms,
            measured.parity.metric,
            measured.parity.score,
            artefact.stream,
            artefact.passed,
        )
        for measured in artefact.measured
    ]


def _placed(point: Point, others: Sequence[Point]) -> Point:
    rivals = (other for other in others if other.passed and other.stream == point.stream)
    best = point.passed and not any(rival.beats(point) for rival in rivals)
    return replace(point, frontier=best)


def draw(points: Sequence[Point]) -> Figure:
    """Returns the score over size and over latency; what is on the frontier is filled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.patch.set_alpha(0)
    shown = [point for point in points if not point.stream] or list(points)
    left, right = figure.subplots(1, 2, sharey=True)
    sizes = [point.size_bytes / 1000 for point in shown]
    _scatter(left, shown, sizes, "size, KB")
    _scatter(right, shown, [point.median_ms for point in shown], "latency, median ms")
    names = sorted({point.metric.replace("_", " ") for point in shown})
    left.set_ylabel(f"{', '.join(names)} of the file", color=INK)
    handles, names = left.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK
    )
    return figure


def _scatter(axes: Any, points: Sequence[Point], x: Sequence[float], name: str) -> None:
    for number, run in enumerate(dict.fromkeys(point.run for point in points)):
        own = [(at, p) for at, p in zip(x, points, strict=True) if p.run == run]
        colour = f"C{number % 10}"
        axes.scatter(
            [at for at, _ in own],
            [p.score for _, p in own],
            facecolors=[colour if p.frontier else "none" for _, p in own],
            edgecolors=colour,
            label=run,
        )
    axes.set_xscale("log")
    axes.set_xlabel(name, color=INK)
    axes.tick_params(colors=INK, which="both")
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save_plot(points: Sequence[Point], path: Path) -> None:
    """Writes the plot; equal points give equal bytes. Needs matplotlib (extra `bench`)."""
    import matplotlib as mpl

    if path.suffix != ".svg":
        raise InputError(f"--plot {path}: must end in .svg")
    with mpl.rc_context({"svg.hashsalt": "wildflower"}):
        draw(points).savefig(path, metadata={"Date": None})
