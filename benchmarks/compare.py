"""All systems on all workloads, side by side: `python -m benchmarks.compare`.

The systems take turns (A B C D, A B C D, ...), so that a machine that gets slower or busier in the
meantime does so for all of them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import result_path, told_in_a_line
from benchmarks.machine import machine, slug
from benchmarks.simulation import Result, describe, measure
from benchmarks.summary import (
    OURS,
    detail_table,
    medians,
    ratios,
    seconds_of,
    speed_table,
)
from benchmarks.systems import Asked, find_system
from benchmarks.workloads import WORKLOADS, find_workload
from shared_models.errors import WildflowerError
from shared_models.files import write_json

SIDE_BY_SIDE = (OURS[0], "floor", "pfl", "flower")


def turns(
    workloads: Sequence[str], systems: Sequence[str], repeat: int
) -> Iterator[tuple[str, str]]:
    """Yields `(workload, system)` in the order in which they run.

    Workload after workload; within one, the systems take turns.
    """
    for workload in workloads:
        for _ in range(repeat):
            for system in systems:
                yield workload, system


def report(results: Sequence[Result]) -> dict[str, Any]:
    """Returns what goes into the results file, as plain values."""
    rows = medians(results)
    workloads = dict.fromkeys(row.workload for row in rows)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "medians": [asdict(row) for row in rows],
        "ratios": {name: ratios(seconds_of(rows, name)) for name in workloads},
        "results": [asdict(result) for result in results],
    }


def _measure_all(
    todo: Sequence[tuple[str, str]], rounds: int | None, changes: tuple[str, ...], out: Path
) -> tuple[list[Result], int]:
    """Measures turn after turn and writes the file after each; a system that fails is told."""
    results: list[Result] = []
    failed = 0
    for workload, system in todo:
        chosen = find_workload(workload)
        try:
            asked = Asked(chosen, rounds or chosen.rounds_of(system), changes)
            result = measure(system, asked)
        except WildflowerError as error:
            failed += 1
            print(f"{workload} {system}: error: {error}", file=sys.stderr)
            continue
        results.append(result)
        print(describe(result), file=sys.stderr, flush=True)
        write_json(out, report(results))
    return results, failed


def main(
    workloads: Annotated[str, typer.Option(help="Names with commas between.")] = ",".join(
        WORKLOADS
    ),
    systems: Annotated[str, typer.Option(help="Names with commas between.")] = ",".join(
        SIDE_BY_SIDE
    ),
    repeat: Annotated[int, typer.Option(min=1, help="How many times each runs.")] = 3,
    rounds: Annotated[
        int | None, typer.Option(min=2, help="Default: what each workload says.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="For wildflower: a key=value of its config."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Default: benchmarks/results/<date>-<machine>.json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure all systems side by side; print seconds per round, ratios and targets.

    Example: python -m benchmarks.compare --workloads W1-100,W2 --systems wildflower,floor
    """
    path = result_path(out, slug())
    with told_in_a_line():
        chosen, others = workloads.split(","), systems.split(",")
        for name in chosen:
            find_workload(name)
        for name in others:
            find_system(name)
    todo = list(turns(chosen, others, repeat))
    results, failed = _measure_all(todo, rounds, tuple(changes or ()), path)
    rows = medians(results)
    print(
        json.dumps(report(results), indent=2)
        if as_json
        else f"{speed_table(rows)}\n\n{detail_table(rows)}\n\n{path}"
    )
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
