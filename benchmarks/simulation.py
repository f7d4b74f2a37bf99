"""One system on one workload: `python -m benchmarks.simulation --workload W1 --system floor`."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
import typer

from benchmarks.command import told_in_a_line
from benchmarks.machine import machine
from benchmarks.systems import SYSTEMS, Asked, Ran, run_system
from benchmarks.text import three_figures
from benchmarks.workloads import WORKLOADS, Workload, data_of, find_workload
from server.evaluation import make_evaluator
from shared_models.arrays import Arrays
from shared_models.datasets.load import load_task_data
from shared_models.tasks import load_task


@dataclass(frozen=True)
class Result:
    """What was measured of one run.

    * `startup_s`: from the start of the process to the end of the first trained client; where a
      system does not show that, to the end of the first round, less a median round.
    * `round_seconds`: from the end of a round to the end of the next, all that lies between
      included; the first round has no entry. `seconds_per_round` is their median.
    * `peak_pss_mb`: the largest sum over the process tree that was seen.
    """

    workload: str
    system: str
    rounds: int
    clients: int
    cohort: int
    startup_s: float
    seconds_per_round: float
    clients_per_second: float
    round_seconds: tuple[float, ...]
    peak_pss_mb: float | None
    accuracy: float
    loss: float
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    date: str


def measure(system: str, asked: Asked) -> Result:
    """Runs a system on a workload and measures it; raises `WildflowerError` if it fails."""
    workload, ran = asked.workload, run_system(system, asked)
    between = tuple(later - earlier for earlier, later in pairwise(ran.round_ends))
    median = statistics.median(between)
    told = evaluate(workload, ran.weights)
    return Result(
        workload=workload.name,
        system=system,
        rounds=len(ran.round_ends),
        clients=workload.clients,
        cohort=workload.cohort,
        startup_s=round(_startup(ran, median), 2),
        seconds_per_round=round(median, 4),
        clients_per_second=round(workload.cohort / median, 2),
        round_seconds=tuple(round(seconds, 4) for seconds in between),
        peak_pss_mb=None if ran.watched.peak_pss_mb is None else round(ran.watched.peak_pss_mb),
        accuracy=round(told["accuracy"], 4),
        loss=round(told["loss"], 4),
        versions=ran.versions,
        settings=ran.settings,
        machine=machine(),
        date=time.strftime("%Y-%m-%d"),
    )


def _startup(ran: Ran, median: float) -> float:
    first = ran.first_client or ran.round_ends[0] - median
    return first - ran.watched.began


def evaluate(workload: Workload, weights: Arrays) -> dict[str, float]:
    """Returns loss and accuracy of weights on the workload's test set: one function for all."""
    task = load_task(workload.task)
    test = load_task_data(task, data_of(workload).name).test
    assert test is not None  # noqa: S101 - every workload's data has a test split
    return make_evaluator(task, test, torch.device("cpu"), batch_size=100)(weights)


def describe(result: Result) -> str:
    """Returns a result as one line for a person."""
    memory = "" if result.peak_pss_mb is None else f", {result.peak_pss_mb:.0f} MB"
    speed = three_figures(result.clients_per_second)
    return (
        f"{result.workload} {result.system}: {result.seconds_per_round:.3f} s a round, "
        f"{speed} clients/s, start {result.startup_s:.1f} s{memory}, "
        f"accuracy {result.accuracy:.4f} after {result.rounds} rounds"
    )


def main(
    workload: Annotated[str, typer.Option(help=f"One of {', '.join(WORKLOADS)}; or tiny.")],
    system: Annotated[str, typer.Option(help=f"One of {', '.join(SYSTEMS)}.")],
    rounds: Annotated[
        int | None, typer.Option(min=2, help="Default: what the workload says.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="For wildflower: a key=value of its config."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure one system on one workload.

    Example: python -m benchmarks.simulation --workload W1-100 --system floor --json
    """
    with told_in_a_line():
        chosen = find_workload(workload)
        asked = Asked(chosen, rounds or chosen.rounds_of(system), tuple(changes or ()))
        result = measure(system, asked)
    print(json.dumps(asdict(result), indent=2) if as_json else describe(result))


if __name__ == "__main__":
    typer.run(main)
