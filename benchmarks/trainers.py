"""Which trainer every example takes, and what the others cost: `python -m benchmarks.trainers`.

Each is measured as the planner does before a run: on a few clients, thrown away afterwards. The
planner's choice is the fastest of the medians over turns.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import kept, result_path, told_in_a_line
from benchmarks.machine import machine
from benchmarks.text import markdown, three_figures
from clients.host import open_host
from clients.planner import Bench, Found, measure
from shared_models.config import Config, read_config
from shared_models.files import write_json

EXAMPLES = Path(__file__).parents[1] / "examples"
_PLAIN = ("reused", "loop")
"""The loop over clients and batches, by which the others are judged: the first that fits."""


def measure_example(config: Config, turns: int) -> dict[str, Any]:
    """Returns milliseconds a client of each trainer, and why others do not fit."""
    host = open_host(config)
    stage = max(config.learning_stages, key=lambda s: s.rounds * s.clients_per_round)
    found = [measure(Bench(host, stage, float("inf"))) for _ in range(turns)]
    return {
        "task": config.task,
        "stage": stage.name,
        "objective": stage.objective,
        "ms_a_client": _medians(found),
        "left_out": dict(found[-1].left_out),
        "turns": turns,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
    }


def _medians(found: Sequence[Found]) -> dict[str, float]:
    names = [name for name in found[0].seconds if all(name in one.seconds for one in found)]
    return {n: 1e3 * statistics.median(one.seconds[n] for one in found) for n in names}


def complete(path: Path, names: Sequence[str], turns: int) -> dict[str, Any]:
    """Returns the result in a file, in which each example is kept as soon as it is measured."""
    told = kept(path, "examples")
    for name in names or sorted(own.stem for own in EXAMPLES.glob("*.toml")):
        if names or name not in told["examples"]:
            print(f"{name} ...", file=sys.stderr, flush=True)
            config = read_config(EXAMPLES / f"{name}.toml")
            told["examples"][name] = measure_example(config, turns)
            write_json(path, told)
    return told


def report(told: Mapping[str, Any]) -> str:
    """Returns a table with the examples, how fast each trainer is, and why others are not there.

    >>> took, left_out = {"reused": 3.0, "fused+": 1.5}, {"low_rank": "it is odd"}
    >>> own = {"task": "digits-cnn", "ms_a_client": took, "left_out": left_out}
    >>> print(report({"examples": {"toy": own}}))
    | example | task       | ms a client | fastest | gain | others    | do not fit          |
    | ------- | ---------- | ----------- | ------- | ---- | --------- | ------------------- |
    | toy     | digits-cnn | 1.5         | fused+  | 2x   | reused 1x | low_rank: it is odd |
    """
    head = ("example", "task", "ms a client", "fastest", "gain", "others", "do not fit")
    return markdown(head, [_line(name, own) for name, own in told["examples"].items()])


def _line(name: str, own: Mapping[str, Any]) -> tuple[str, ...]:
    took = own["ms_a_client"]
    plain = next(took[known] for known in _PLAIN if known in took)
    fastest, *others = sorted(took, key=took.__getitem__)
    gains = {trainer: f"{three_figures(plain / ms)}x" for trainer, ms in took.items()}
    return (
        name,
        own["task"],
        three_figures(took[fastest]),
        fastest,
        gains[fastest],
        ", ".join(f"{trainer} {gains[trainer]}" for trainer in others),
        "; ".join(_by_reason(own["left_out"])),
    )


def _by_reason(left_out: Mapping[str, str]) -> Iterator[str]:
    for reason in dict.fromkeys(left_out.values()):
        yield f"{', '.join(name for name in left_out if left_out[name] == reason)}: {reason}"


def main(
    examples: Annotated[
        list[str] | None,
        typer.Option("--example", help="This one, anew; may be repeated. Default: the missing."),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(help="Default: benchmarks/results/<date>-trainers.json. Goes on with one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure every trainer that fits on every example.

    Example: python -m benchmarks.trainers --example watch-lstm
    """
    path = result_path(out, "trainers")
    with told_in_a_line():
        told = complete(path, examples or (), turns)
    print(json.dumps(told, indent=2) if as_json else f"{report(told)}\n\n{path}")


if __name__ == "__main__":
    typer.run(main)
