"""Which file to ship: what was exported, how it compares, how small and fast it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.edge.artefact import Artefact, objection
from deploy.frontier import Point, placed, points_in
from deploy.report.blocks import Block, Figure, Note, Section, Table
from deploy.report.plots import dots, layout, plain
from deploy.report.story import Story
from deploy.report.words import joined, named, number, percent, size, titled

_RULE = (
    "To ship is, for each family of runtimes, the smallest file that passed its check: its score "
    "is as good as torch's, and its answers are the same, within the limits of the config."
)


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
        "and better in one of these.",
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
    names = joined(list(dict.fromkeys(p.file for p in best)))
    return Figure(
        f"{titled(metric)} over {over}",
        f"Scatter plot of {metric} over {over} of {len(points)} measurements. Not beaten: {names}.",
        [
            _files(name, [p for p in points if (p.run if by_run else p.runtime) == name], over, k)
            for k, name in enumerate(groups)
        ],
        {
            "xaxis": {"type": "log", "title": {"text": x_name}, "tickvals": _ticks(points, over)},
            "yaxis": layout("", metric)["yaxis"],
            "hovermode": "closest",
        },
        note="Filled: no other file beats it. Hollow: another one does, or it failed its gate.",
    )


def _over(point: Point, over: str) -> float:
    return point.size_bytes / 1000 if over == "size" else point.median_ms


def _ticks(points: Sequence[Point], over: str) -> list[float]:
    """Returns the 1, 2, 5, 10 ... around the points of a logarithmic axis."""
    values = [_over(point, over) for point in points]
    low, high = min(values) / 2, max(values) * 2
    steps = [k * 10.0**e for e in range(-6, 9) for k in (1, 2, 5)]
    return [float(f"{step:.3g}") for step in steps if low <= step <= high]


def _files(name: str, own: Sequence[Point], over: str, place: int) -> dict[str, object]:
    x = [_over(p, over) for p in own]
    trace = dots(name, x, [p.score for p in own], place)
    shape = ("circle", "square", "diamond", "triangle-up", "cross", "x")[place % 6]
    hollow = "" if shape in {"cross", "x"} else "-open"
    trace["marker"]["symbol"] = [shape if p.frontier else f"{shape}{hollow}" for p in own]
    trace["marker"]["size"] = 11
    trace["text"] = [plain(f"{p.run}: {p.file}, {p.runtime}") for p in own]
    trace["hovertemplate"] = "%{text}<br>%{y:.4f} at %{x:.4~g}<extra></extra>"
    return trace
