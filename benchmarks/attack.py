"""Clients flip the sign of their updates; which rules stand it? `python -m benchmarks.attack`.

A fifth of 100 clients send `-4` times their update, in every round that they take part in. Four is
where a fifth of the clients takes away what the others give: 0.8 - 0.2 * 4 = 0. Li et al., "RSA:
Byzantine-robust stochastic aggregation methods for distributed learning from heterogeneous
datasets", AAAI 2019, scale the flipped message in the same way.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.command import result_path, told_in_a_line
from benchmarks.learning import Curve, Kept, learn_all, open_kept
from benchmarks.plot import INK, save
from benchmarks.text import markdown
from shared_models.config import Config, parse_config

LAST = 5  # rounds whose mean accuracy is told
CLEAN = "mean, nobody attacks"


@dataclass(frozen=True)
class Setting:
    """What all runs share; every `nth` client of `clients` attacks."""

    task: str = "mnist-2nn"
    clients: int = 100
    cohort: int = 50
    nth: int = 5
    examples: int = 300
    rounds: int = 40
    local_learning_rate: float = 0.1


@dataclass(frozen=True)
class Case:
    """A curve of the plot: the aggregator's keys, and by how much attackers scale their update."""

    name: str
    keys: Mapping[str, Any]
    scale: float = 4.0
    colour: str | None = None
    """None: it is in the table alone."""


# Of 50 clients drawn from 100, more than a fifth are attackers in two rounds of five, more than
# three tenths in one of four hundred: three tenths are what the rules are told to expect.
_EXPECTED = 0.3
CASES = (
    Case(CLEAN, {}, 0.0, INK),
    Case("mean", {}, 4.0, "#c8452f"),
    Case("median", {"aggregator": "median"}, colour="#3f8fce"),
    Case(
        "trimmed mean",
        {"aggregator": "trimmed_mean", "trim_fraction": _EXPECTED},
        colour="#5a9e4b",
    ),
    Case(
        "Multi-Krum",
        {"aggregator": "multi_krum", "byzantine_fraction": _EXPECTED},
        colour="#8f6fc4",
    ),
    Case("geometric median", {"aggregator": "geometric_median"}, colour="#d9822b"),
    Case("Krum", {"aggregator": "krum", "byzantine_fraction": _EXPECTED}),
    Case("clipped mean", {"aggregator": "clipped_mean", "clip_norm": 1.0}),
    Case("mean, flipped x 1", {}, 1.0),
    Case("mean, flipped x 10", {}, 10.0),
)


def config_of(case: Case, setting: Setting) -> Config:
    """Returns a case's config."""
    values = {
        "name": "attack",
        "task": setting.task,
        "data": {"clients": setting.clients, "max_examples_per_client": setting.examples},
        "plan": {"trainer": "fused", "block_size": 25},
        "stages": [
            {
                "kind": "train",
                "rounds": setting.rounds,
                "clients_per_round": setting.cohort,
                "local_learning_rate": setting.local_learning_rate,
                **case.keys,
            }
        ],
    }
    if case.scale:
        attackers = list(range(0, setting.clients, setting.nth))
        values["faults"] = {"sign_flip": attackers, "sign_flip_scale": case.scale}
    return parse_config(tomli_w.dumps(values), case.name)


def summary(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """Returns a row per case: its accuracy at the end, and points lost against nobody attacking."""
    clean = curves[CLEAN].at_end(LAST)
    return [
        {
            "case": case.name,
            "accuracy": round(curves[case.name].at_end(LAST), 4),
            "points_lost": round(100 * (clean - curves[case.name].at_end(LAST)), 1),
            "broke": curves[case.name].broke,
        }
        for case in CASES
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as Markdown."""
    body = [
        (row["case"], "broke off" if row["broke"] else f"{row['accuracy']:.4f}", _lost(row))
        for row in rows
    ]
    return markdown(("aggregator", "accuracy", "points lost"), body)


def _lost(row: Mapping[str, Any]) -> str:
    return "" if row["case"] == CLEAN or row["broke"] else f"{row['points_lost']:.1f}"


def draw(curves: Mapping[str, Curve], setting: Setting) -> Figure:
    """Returns the figure: test accuracy over rounds, once in full and once where the best are."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    figure.patch.set_alpha(0)
    whole, top = figure.subplots(1, 2)
    for axes in (whole, top):
        _draw_curves(axes, curves)
    best = max(curves[CLEAN].accuracy)
    top.set_ylim(100 * best - 10, 100 * best + 1)
    whole.set_ylabel("test accuracy, %", fontsize=9, color=INK)
    figure.suptitle(
        f"{setting.task}, one of {setting.nth} clients sends -4 x its update",
        fontsize=9,
        color=INK,
    )
    lines, names = whole.get_legend_handles_labels()
    figure.legend(
        lines, names, fontsize=8, labelcolor=INK, frameon=False, loc="outside right center"
    )
    return figure


def _draw_curves(axes: Axes, curves: Mapping[str, Curve]) -> None:
    for case in (case for case in CASES if case.colour):
        accuracy = [100 * value for value in curves[case.name].accuracy]
        style = "--" if case.name == CLEAN else "-"
        rounds = range(1, len(accuracy) + 1)
        axes.plot(rounds, accuracy, style, color=case.colour, label=case.name, linewidth=1.5)
    axes.set_xlabel("round", fontsize=9, color=INK)
    axes.tick_params(colors=INK, labelsize=8)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _measure(setting: Setting, path: Path, processes: int) -> Kept:
    kept = open_kept(path, asdict(setting))
    wanted = {case.name: config_of(case, setting) for case in CASES}

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return learn_all(wanted, kept, processes, tell)


def main(
    rounds: Annotated[int, typer.Option(min=LAST, help="Of each run.")] = Setting.rounds,
    processes: Annotated[int, typer.Option(min=1, help="So many runs at a time.")] = 2,
    plot: Annotated[Path | None, typer.Option(help="An SVG to write.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Default: benchmarks/results/<date>-attack.json. Goes on with one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Attack MNIST under every aggregator; print the accuracies, draw them.

    Example: python -m benchmarks.attack --plot docs/images/attack.svg
    """
    setting = Setting(rounds=rounds)
    path = result_path(out, "attack")
    with told_in_a_line():
        kept = _measure(setting, path, processes)
    rows = summary(kept.curves)
    kept.write(date=time.strftime("%Y-%m-%d"), rows=rows)
    if plot is not None:
        save(draw(kept.curves, setting), plot, "test accuracy under sign-flipping clients")
    print(json.dumps(rows, indent=2) if as_json else f"{table(rows)}\n\n{path}")


if __name__ == "__main__":
    typer.run(main)
