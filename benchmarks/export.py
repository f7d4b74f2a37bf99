"""Every model in every format: size, accuracy, speed. `python -m benchmarks.export --json`.

Each model is trained in one place, for a minute: the
table is about formats. Torch and a file are timed in turns, batch 1, one thread each.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import nn

from benchmarks.command import kept, result_path, told_in_a_line
from benchmarks.export_models import LESSONS, Lesson, Trained, ask, train
from benchmarks.export_table import page as page_of
from benchmarks.export_table import report
from benchmarks.machine import machine
from deploy.edge.answers import SCORINGS
from deploy.edge.measure import measure_parity
from deploy.edge.quiet import quietly
from deploy.edge.runtimes import Model, is_installed, open_model, runtimes_for
from deploy.export.formats import FORMATS, choose, export, objection
from deploy.export.formats.recurrent import is_recurrent
from deploy.export.formats.source import Source
from shared_models.files import write_json
from shared_models.task import Task
from shared_models.tasks import TASKS, load_task

UNROLLED = ("unrolled-fp32", "unrolled-dynamic")
"""What a recurrent model would be without a writer of ours."""


@dataclass(frozen=True)
class Cell:
    """A file on a runtime; `faster` is the median over turns of torch's time by the file's."""

    runtime: str
    version: str
    score: float
    agreement: float
    max_gap: float
    p50_ms: float
    torch_ms: float
    faster: float


@dataclass(frozen=True)
class Row:
    """A format of a model: what it is on each runtime, or why there is no file."""

    task: str
    format: str
    default: bool
    size_bytes: int
    cells: tuple[Cell, ...]
    missing: tuple[str, ...]
    """Runtimes for such a file that this machine lacks."""
    why_not: str
    notes: str


@dataclass(frozen=True)
class Effort:
    """How carefully time is taken: in so many turns of so many runs."""

    turns: int = 7
    runs: int = 20


def measure_task(trained: Trained, effort: Effort) -> Iterator[Row]:
    """Yields a row for every format, also for those that cannot be made of the model."""
    defaults = choose(trained.ships.model, ("onnx", "tflite"), ("auto",), trained.task.answer)
    names = (*FORMATS, *(UNROLLED if is_recurrent(trained.ships.model) else ()))
    with tempfile.TemporaryDirectory() as folder:
        source = Source(trained.ships.model, trained.calibration, Path(folder))
        for name in names:
            reason = "" if name in UNROLLED else objection(trained.ships.model, name)
            if reason:
                yield Row(trained.task.name, name, False, 0, (), (), reason, "")
                continue
            path, notes = _write(source, name)
            runtimes = runtimes_for(path)
            cells = tuple(
                _measure(trained, path, runtime, effort)
                for runtime in runtimes
                if is_installed(runtime)
            )
            missing = tuple(runtime for runtime in runtimes if not is_installed(runtime))
            size, chosen = path.stat().st_size, name in defaults
            yield Row(trained.task.name, name, chosen, size, cells, missing, "", notes)


def _write(source: Source, name: str) -> tuple[Path, str]:
    """Returns a file of a format, and what its exporter notes."""
    with quietly():
        if name not in UNROLLED:
            path = source.workshop / FORMATS[name].file
            return path, export(source, name, path).notes
        from deploy.export.formats import converted, tflite_dynamic

        if name == "unrolled-fp32":
            return converted.convert(source), ""
        path = source.workshop / f"{name}.tflite"
        tflite_dynamic.write_converted(source, path)
        return path, ""


def _measure(trained: Trained, path: Path, runtime: str, effort: Effort) -> Cell:
    inputs, reference = trained.ships.input, trained.reference
    with open_model(path, runtime) as model:
        parity = measure_parity(model.predict, inputs, reference)
        x = inputs.prepare(reference.x[: effort.runs])
        own, torchs = _in_turns(model, trained.ships.model, x, effort)
        version = model.facts.version
    return Cell(
        runtime,
        version,
        parity.score,
        parity.agreement,
        parity.max_gap,
        p50_ms=statistics.median(own),
        torch_ms=statistics.median(torchs),
        faster=statistics.median(b / a for a, b in zip(own, torchs, strict=True)),
    )


def _in_turns(
    model: Model, torchs: nn.Module, x: NDArray[Any], effort: Effort
) -> tuple[list[float], list[float]]:
    """Returns median milliseconds a turn of the file, and of torch right before it."""
    own, theirs = [], []
    for _ in range(effort.turns):
        theirs.append(statistics.median(_time(lambda one: ask(torchs, one), x)))
        own.append(float(np.median(model.time(x, effort.runs)[0])))
    return own, theirs


def _time(ask: Callable[[NDArray[Any]], Any], x: NDArray[Any]) -> list[float]:
    times = []
    ask(x[:1])
    for place in range(len(x)):
        began = time.perf_counter()
        ask(x[place : place + 1])
        times.append((time.perf_counter() - began) * 1e3)
    return times


def measure(task: Task, effort: Effort) -> dict[str, Any]:
    """Returns the rows of a model, and what torch does in the same turns."""
    trained = train(task, LESSONS.get(task.name, Lesson()))
    rows = tuple(measure_task(trained, effort))
    reference = trained.reference
    scoring = SCORINGS[reference.answer]
    return {
        "size_bytes": trained.size_bytes,
        "examples": len(reference.x),
        "metric": scoring.metric,
        "score": scoring.score(reference.outputs, reference.targets),
        "torch_ms": statistics.median(cell.torch_ms for row in rows for cell in row.cells),
        "rows": [asdict(row) for row in rows],
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
    }


def complete(path: Path, names: Sequence[str], effort: Effort) -> dict[str, Any]:
    """Returns the result in a file, in which each model is kept as soon as it is measured.

    Those that are named are measured, anew if they are there; without a name, all that are missing.
    """
    told = kept(path, "tasks")
    for task in [load_task(name) for name in names or TASKS if names or name not in told["tasks"]]:
        print(f"{task.name} ...", file=sys.stderr, flush=True)
        known = {**told["tasks"], task.name: {**measure(task, effort), **asdict(effort)}}
        told["tasks"] = {name: known[name] for name in TASKS if name in known}
        write_json(path, told)
    return told


def main(
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="This one, anew; may be repeated. Default: all that are missing."
        ),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="How often each file is timed.")] = Effort.turns,
    out: Annotated[
        Path | None,
        typer.Option(help="Default: benchmarks/results/<date>-export.json. Goes on with one."),
    ] = None,
    page: Annotated[Path | None, typer.Option(help="A page of Markdown to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train every model for a minute, export it to every format, run every file everywhere.

    Example: python -m benchmarks.export --task watch-lstm
    """
    torch.set_num_threads(1)
    path = result_path(out, "export")
    with told_in_a_line():
        told = complete(path, tasks or (), Effort(turns))
    if page is not None:
        page.write_text(page_of(told))
    print(json.dumps(told, indent=2) if as_json else f"{report(told)}\n\n{path}")


if __name__ == "__main__":
    typer.run(main)
