"""Which file to ship: what was exported, how it compares, how small and fast it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.edge.artefact import Artefact, objection
from deploy.frontier import Point, placed, points_in
from deploy.report.blocks import Block, Figure, Note, Section, Table
from deploy.report.plots import axis, dots, plain
from deploy.report.story import Story
from deploy.report.words import joined, named, number, percent, size, titled

_RULE = (
    "To ship is, for each family of runtimes, the smallest file that passed its check: its score "
    "is as good as torch's, and its answers are the same, within the limits of the config."
)
_LATENCY = (
    "ms: for one example at a time, in one thread of the machine that exported; the median, and "
    "what 95 of 100 stay below (p95). A device differs: measure there."
)
_LEAST = 0.02  # of a score: less than that is no difference to look at
_BESIDE, _LETTER = 0.07, 0.02  # of a plot: from a point to its name, and a letter's width


@dataclass(frozen=True)
class Pick:
    """The file to ship for one family of runtimes, and why."""

    family: str
    file: Artefact
    why: str


def exports(story: Story) -> Section:
    """Returns the section that says which file to ship."""
    title = "Which file to ship?"
    if not story.files:
        return Section("files", title, (Note(_no_files(story), "missing"),))
    points = points_of([story])
    blocks: list[Block] = [*_advice(story.files), _table(points, story.files)]
    blocks += [_frontier(points, "size"), _frontier(points, "latency")]
    untried = sorted({name for file in story.files for name in file.not_tried})
    if untried:
        text = f"Not tried on {joined(untried)}: this machine lacks it."
        blocks.append(Note(text, "missing"))
    return Section("files", title, tuple(blocks))


def _no_files(story: Story) -> str:
    if story.exports and story.status == "running":
        return "Not there yet: files are made and measured when the learning stages are over."
    return "No file was exported. `wildflower export RUN` makes and measures some."


def points_of(stories: Sequence[Story]) -> list[Point]:
    """Returns the files of runs in each runtime, and which are on the frontier."""
    return placed(
        [
            point
            for story in stories
            for file in story.files
            for point in points_in(story.name, file, story.totals.params or 0)
        ]
    )


def picks(files: Sequence[Artefact]) -> list[Pick]:
    """Returns the file to ship for each family of runtimes: the smallest that passed its gate.

    Of equally small ones it is the faster. Streams are for who feeds time steps: they are chosen
    only where there is nothing else.
    """
    found = []
    for family in dict.fromkeys(_family(file) for file in files):
        own = [file for file in files if _family(file) == family and file.passed]
        whole = [file for file in own if not file.stream] or own
        if whole:
            best = min(whole, key=lambda file: (file.size_bytes, file.latency.median_ms))
            found.append(Pick(family, best, _why(best)))
    return found


def _family(file: Artefact) -> str:
    return "ONNX Runtime" if file.file.endswith(".onnx") else "TFLite / LiteRT"


def _why(file: Artefact) -> str:
    parity, latency = file.parity, file.latency
    return (
        f"{size(file.size_bytes)}, {number(latency.median_ms, 3)} ms an example, "
        f"{named(parity.metric)} {number(parity.score)} (torch: {number(parity.score_torch)})"
    )


def _price(pick: Pick, files: Sequence[Artefact]) -> str:
    """Returns what a pick costs and saves against the file of its family that is not quantized."""
    plain_ones = (f for f in files if _family(f) == pick.family and f.quantization == "none")
    whole = next((f for f in plain_ones if f.stream == pick.file.stream), None)
    if whole is None or whole.file == pick.file.file:
        return ""
    less = 1 - pick.file.size_bytes / whole.size_bytes
    gap = pick.file.parity.score - whole.parity.score
    cost = "no worse" if gap >= 0 else f"{number(-gap)} worse in {named(whole.parity.metric)}"
    return f"; against {whole.file} it is {percent(less)} smaller, and {cost}"


def _advice(files: Sequence[Artefact]) -> list[Block]:
    found = picks(files)
    blocks: list[Block] = [Note(_RULE)] if found else []
    blocks += [
        Note(f"For {pick.family}: {pick.file.file} - {pick.why}{_price(pick, files)}.")
        for pick in found
    ]
    if not found:
        blocks.append(Note("No file passed its gate: ship none of these.", "warning"))
    blocks += [
        Note(f"{file.file} failed: {gate_fault(file)}.", "warning")
        for file in files
        if not file.passed
    ]
    return blocks


def gate_fault(file: Artefact) -> str:
    """Returns why a file was not let through."""
    return objection(file.gate, file.measured) or "its gate"


def _table(points: Sequence[Point], files: Sequence[Artefact]) -> Table:
    best = {pick.file.file for pick in picks(files)}
    metric = named(files[0].parity.metric)
    frontier = {(point.file, point.runtime) for point in points if point.frontier}
    rows: list[tuple[str, ...]] = []
    marked = []
    for file in files:
        for one in file.measured:
            if file.file in best:
                marked.append(len(rows))
            verdict = "ship" if file.file in best else "passed" if file.passed else "failed"
            star = " *" if (file.file, one.runtime) in frontier else ""
            rows.append(
                (
                    file.file,
                    file.quantization,
                    f"{one.runtime} {one.version}",
                    size(file.size_bytes),
                    f"{one.latency.median_ms:.3f}",
                    f"{one.latency.p95_ms:.3f}",
                    f"{one.parity.score:.4f}",
                    f"{one.parity.score_torch:.4f}",
                    f"{one.parity.agreement:.4f}",
                    f"{one.parity.max_gap:.3g}",
                    verdict + star,
                )
            )
    columns = ("file", "quantized", "runtime", "size ", "median ms ", "p95 ms ", f"{metric} ")
    return Table(
        "Exported files, each run and compared with torch",
        (*columns, "torch ", "agrees ", "largest gap ", "verdict"),
        tuple(rows),
        marked=frozenset(marked),
        note="ship: the smallest of its family that passed. passed: good enough, but larger. "
        "failed: it differs too much from torch. * no other file is as small, as fast and as good, "
        f"and better in one of these. {_LATENCY} agrees: the share of examples of which file and "
        "torch say the same. largest gap: between their outputs.",
    )


def _frontier(points: Sequence[Point], over: str) -> Figure:
    shown = [point for point in points if not point.stream] or list(points)
    return frontier_figure(shown, over, by_run=False)


def frontier_figure(points: Sequence[Point], over: str, *, by_run: bool) -> Figure:
    """Returns the score of files over their size or latency; filled are those on the frontier."""
    metric = named(points[0].metric)
    groups = dict.fromkeys(p.run if by_run else p.runtime for p in points)
    x_name = "size, KB" if over == "size" else "latency, median ms"
    best = [p for p in points if p.frontier]
    files = joined(list(dict.fromkeys(p.file for p in best)))
    names = _names(points, over)
    return Figure(
        f"{titled(metric)} over {over}",
        f"Scatter plot of {metric} over {over} of {len(points)} measurements. Not beaten: {files}.",
        [
            _files(name, [p for p in points if (p.run if by_run else p.runtime) == name], over, k)
            for k, name in enumerate(groups)
        ],
        {
            "xaxis": _log_axis(x_name, [_over(point, over) for point in points]),
            "yaxis": axis(metric, range=_roomy([point.score for point in points])),
            "hovermode": "closest",
            "annotations": names,
        },
        note=f"Up and to the left is better. Filled: no other file is as small, as fast and as "
        f"good. Hollow: another one is. Crossed out: it failed its check. {_NOTES[over]}".strip(),
        height=360,
    )


_NOTES = {
    "size": "",
    "latency": "One example at a time, in one thread of the machine that exported.",
}


def _names(points: Sequence[Point], over: str) -> list[dict[str, object]]:
    """Returns the names of points, above or below them, of those for whose name there is room."""
    across = _unit([math.log10(own) for own in _around([_over(p, over) for p in points])])
    up = _unit(_roomy([point.score for point in points]))
    spots = [(across(math.log10(_over(p, over))), up(p.score)) for p in points]
    taken = [(x, y, 0) for x, y in spots]
    found: list[dict[str, object]] = []
    for point, (x, y) in zip(points, spots, strict=True):
        name = _short(point)
        for side in (1, -1):
            own = (x, y + side * _BESIDE, len(name))
            if all(_apart(own, other) for other in taken):
                taken.append(own)
                found.append(_name(point, over, name, side))
                break
    return found


def _name(point: Point, over: str, name: str, side: int) -> dict[str, object]:
    where = {"x": math.log10(_over(point, over)), "y": point.score, "yshift": 14 * side}
    look = {"showarrow": False, "font": {"size": 12, "color": "var(--ink)"}}
    return {**where, **look, "text": plain(name)}


def _unit(ends: Sequence[float]) -> Callable[[float], float]:
    low, high = ends
    return lambda value: (value - low) / (high - low)


def _apart(one: tuple[float, float, int], other: tuple[float, float, int]) -> bool:
    """Whether two texts of some letters, or points of none, do not touch; in shares of a plot."""
    wide = _LETTER * (one[2] + other[2]) / 2 + 0.02
    return abs(one[0] - other[0]) > wide or abs(one[1] - other[1]) > _BESIDE * 0.8


def _over(point: Point, over: str) -> float:
    return point.size_bytes / 1000 if over == "size" else point.median_ms


def _log_axis(title: str, values: Sequence[float]) -> dict[str, object]:
    """Returns a logarithmic axis with room for names beside its points, and 1, 2, 5, 10 ... on it.

    Values that are close together get more numbers than these.
    """
    low, high = _around(values)
    coarse, fine = _between(low, high, (1, 2, 5)), _between(low, high, (1, 1.5, 2, 3, 4, 5, 6, 8))
    return {
        "type": "log",
        "title": {"text": title},
        "tickvals": coarse if len(coarse) > 2 else fine,
        "range": [math.log10(low), math.log10(high)],
    }


def _around(values: Sequence[float]) -> list[float]:
    return [min(values) / 1.6, max(values) * 1.6]


def _roomy(values: Sequence[float]) -> list[float]:
    """Returns a range with room for names above and below its points.

    It is never so narrow that a difference that does not matter looks like a large one.

    >>> _roomy([1.0, 3.0]), _roomy([0.5, 0.5]), _roomy([0.0, 0.0])
    ([0.5, 3.5], [0.49, 0.51], [-0.02, 0.02])
    """
    low, high = min(values), max(values)
    room = max((high - low) / 4, _LEAST * max(abs(low), abs(high))) or _LEAST
    return [low - room, high + room]


def _between(low: float, high: float, steps: Sequence[float]) -> list[float]:
    """Returns the steps of all powers of ten that are within.

    >>> _between(0.4, 20, (1, 2, 5))
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    found = [float(f"{k * 10.0**e:.3g}") for e in range(-6, 9) for k in steps]
    return [step for step in found if low <= step <= high]


def _files(name: str, own: Sequence[Point], over: str, place: int) -> dict[str, object]:
    x = [_over(p, over) for p in own]
    trace = dots(name, x, [p.score for p in own], place)
    trace["marker"]["symbol"] = [_symbol(p, place) for p in own]
    trace["marker"]["size"] = 11
    trace["text"] = [plain(f"{p.run}: {p.file}, {p.runtime}") for p in own]
    trace["hovertemplate"] = "%{text}<br>%{y:.4f} at %{x:.4~g}<extra></extra>"
    return trace


def _short(point: Point) -> str:
    """Returns what tells a file from the others of its runtime.

    >>> _short(Point("r", "model-int8.onnx", "t", "int8", "onnxruntime", 1, 1, 1.0, "m", 1.0))
    'int8'
    """
    return point.file.removeprefix("model-").rpartition(".")[0]


def _symbol(point: Point, place: int) -> str:
    """Returns a marker: of one of four shapes, filled, hollow or crossed out."""
    shape = ("circle", "square", "diamond", "triangle-up")[place % 4]
    if not point.passed:
        return "x-thin-open"
    return shape if point.frontier else f"{shape}-open"
