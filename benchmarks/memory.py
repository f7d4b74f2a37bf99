"""Does memory grow with the cohort? `python -m benchmarks.memory`.

Runs the same population of 100,000 clients with 100 and with 10,000 of them a round, and compares
the peak memory (PSS) of the whole process tree.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from benchmarks.command import told_in_a_line
from benchmarks.machine import machine
from benchmarks.process_tree import watch
from benchmarks.systems import ENVIRONMENT, wildflower_command
from shared_models.errors import WildflowerError

COHORTS = (100, 10_000)
ALLOWED = 1.1
LIMIT_S = 1800.0


@dataclass(frozen=True)
class Crowd:
    """A population whose clients' examples are drawn on demand, with overlap."""

    task: str = "mnist-2nn"
    clients: int = 100_000
    examples_per_client: int = 20
    rounds: int = 3

    def config(self, cohort: int) -> dict[str, Any]:
        """Returns the config of a run with `cohort` clients a round."""
        return {
            "name": f"crowd-{cohort}",
            "seed": 0,
            "task": self.task,
            "data": {
                "partition": "draws",
                "clients": self.clients,
                "examples_per_client": self.examples_per_client,
            },
            "evaluate": {"data": "none"},
            "stages": [
                {
                    "name": "train",
                    "kind": "train",
                    "rounds": self.rounds,
                    "clients_per_round": cohort,
                    "local_learning_rate": 0.1,
                }
            ],
        }


def peaks(crowd: Crowd, engine: str) -> dict[int, float]:
    """Returns the peak memory in MB by cohort; raises `WildflowerError` if a run fails."""
    return {cohort: _peak(crowd, engine, cohort) for cohort in COHORTS}


def _peak(crowd: Crowd, engine: str, cohort: int) -> float:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        config = Path(name) / "config.toml"
        config.write_text(tomli_w.dumps(crowd.config(cohort)))
        command = wildflower_command(config, Path(name) / "run", engine)
        # Nobody measures time here: memory may be looked at as often as it takes.
        watched = watch(command, Path(name) / "log", ENVIRONMENT, LIMIT_S, share=1.0)
    if watched.peak_pss_mb is None:
        raise WildflowerError("memory is counted in PSS, which only Linux tells; run it there")
    return watched.peak_pss_mb


def told(found: Mapping[int, float], crowd: Crowd, engine: str) -> dict[str, Any]:
    """Returns the measurement as plain values."""
    few, many = (found[cohort] for cohort in COHORTS)
    return {
        "engine": engine,
        "task": crowd.task,
        "population": crowd.clients,
        "peak_pss_mb": {str(cohort): round(peak) for cohort, peak in found.items()},
        "ratio": round(many / few, 3),
        "within_10_percent": many <= ALLOWED * few,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main(
    engine: Annotated[str, typer.Option(help="inline or ray.")] = "ray",
    task: Annotated[str, typer.Option(help="See `wildflower models`.")] = "mnist-2nn",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare the peak memory of 100 and of 10,000 clients a round, of 100,000.

    Example: python -m benchmarks.memory --engine inline
    """
    crowd = Crowd(task=task, rounds=rounds)
    with told_in_a_line():
        result = told(peaks(crowd, engine), crowd, engine)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        lines = (f"{cohort} a round: {mb} MB" for cohort, mb in result["peak_pss_mb"].items())
        print("\n".join([*lines, f"ratio {result['ratio']}"]))
    raise typer.Exit(0 if result["within_10_percent"] else 1)


if __name__ == "__main__":
    typer.run(main)
