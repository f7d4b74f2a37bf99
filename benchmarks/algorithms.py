"""FedProx, SCAFFOLD, FedAdam and FedYogi against FedAvg: `python -m benchmarks.algorithms`.

Fashion-MNIST by Dirichlet(0.1), equal rounds. Each algorithm is tuned alike, on training examples
that are held out for that: four local learning rates, then, at the best of them, four values of
one more number. Then it runs with other seeds on the test set. A seed decides who owns what, the
initial weights and the cohorts, for all algorithms alike: differences are taken seed by seed.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tomli_w
import typer

from benchmarks.command import result_path, told_in_a_line
from benchmarks.held_out import TUNING_SEED, hold_out
from benchmarks.learning import Curve, Kept, learn_all, open_kept
from benchmarks.text import markdown
from shared_models.config import Config, parse_config

LAST = 5  # rounds whose mean accuracy is told
LAST_TUNING = 20  # rounds are noisy: a choice should not hang on five of them
HELD_OUT = 6000
BASELINE = "FedAvg"

Numbers: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    task: str = "mnist-2nn"
    dataset: str = "fashion-mnist"
    alpha: float = 0.1
    clients: int = 50
    cohort: int = 10
    max_examples: int = 400
    batch_size: int = 20
    rounds: int = 60


@dataclass(frozen=True)
class Algorithm:
    """What makes it, by which trainer, and what else is tried: `values`, from the first on."""

    keys: Mapping[str, str]
    trainer: str
    also: str
    values: tuple[float, ...]


LOCAL_RATES = (0.01, 0.03, 0.1, 0.3)
# Server rates around the 1 of the papers; FedAdam's and FedYogi's around the 0.01 of Reddi et al.
_SERVER_RATES, _ADAPTIVE_RATES = (1.0, 0.5, 1.5, 2.0), (0.01, 0.003, 0.03, 0.1)
ALGORITHMS: Mapping[str, Algorithm] = {
    BASELINE: Algorithm({}, "fused", "server_learning_rate", _SERVER_RATES),
    "FedProx": Algorithm({"objective": "fedprox"}, "loop", "proximal_mu", (0.1, 0.01, 1.0, 0.001)),
    "SCAFFOLD": Algorithm({"objective": "scaffold"}, "loop", "server_learning_rate", _SERVER_RATES),
    "FedAdam": Algorithm(
        {"server_optimizer": "adam"}, "fused", "server_learning_rate", _ADAPTIVE_RATES
    ),
    "FedYogi": Algorithm(
        {"server_optimizer": "yogi"}, "fused", "server_learning_rate", _ADAPTIVE_RATES
    ),
}


def rates(name: str) -> list[Numbers]:
    """Returns the settings that are tried first: local rates, with one value of the others."""
    algorithm = ALGORITHMS[name]
    return [_numbers(algorithm, rate, algorithm.values[0]) for rate in LOCAL_RATES]


def others(name: str, rate: float) -> list[Numbers]:
    """Returns the settings that are tried then, at the best local rate."""
    algorithm = ALGORITHMS[name]
    return [_numbers(algorithm, rate, value) for value in algorithm.values]


def _numbers(algorithm: Algorithm, rate: float, value: float) -> Numbers:
    return {"local_learning_rate": rate, algorithm.also: value}


def run_name(name: str, numbers: Numbers, seed: int | None) -> str:
    """Returns what a run is called in the results file; `seed` is None while tuning."""
    told = " ".join(f"{key}={value:g}" for key, value in numbers.items())
    return f"{name} {'tuning' if seed is None else f'seed {seed}'} {told}"


def config_of(name: str, numbers: Numbers, setting: Setting, data: str, seed: int) -> Config:
    """Returns a run's config; `data` is a dataset or an `.npz`, whose test split is measured."""
    algorithm = ALGORITHMS[name]
    values = {
        "name": "algorithms",
        "task": setting.task,
        "seed": seed,
        "data": {
            "name": data,
            "partition": "dirichlet",
            "alpha": setting.alpha,
            "clients": setting.clients,
            "max_examples_per_client": setting.max_examples,
        },
        "plan": {"trainer": algorithm.trainer, "block_size": setting.cohort},
        "stages": [
            {
                "kind": "train",
                "rounds": setting.rounds,
                "clients_per_round": setting.cohort,
                "batch_size": setting.batch_size,
                **algorithm.keys,
                **numbers,
            }
        ],
    }
    return parse_config(tomli_w.dumps(values), name)


def best(name: str, tried: Sequence[Numbers], curves: Mapping[str, Curve]) -> Numbers:
    """Returns the setting of the highest validation accuracy; of equal ones the first."""
    return max(tried, key=lambda numbers: curves[run_name(name, numbers, None)].at_end(LAST_TUNING))


def chosen(name: str, curves: Mapping[str, Curve]) -> Numbers:
    """Returns the setting that tuning ends with."""
    rate = best(name, rates(name), curves)["local_learning_rate"]
    return best(name, others(name, rate), curves)


def at_edge(name: str, numbers: Numbers) -> list[str]:
    """Returns which of the numbers lie at the end of what was tried: more might be better."""
    also = ALGORITHMS[name]
    tried = {"local_learning_rate": LOCAL_RATES, also.also: also.values}
    return [key for key, value in numbers.items() if value in {min(tried[key]), max(tried[key])}]


def summary(curves: Mapping[str, Curve], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Returns a row per algorithm; `gains` are points against FedAvg, seed by seed."""
    rows = [_row(name, curves, seeds) for name in ALGORITHMS]
    base = rows[0]["accuracies"]
    for row in rows:
        gains = [100 * (own - other) for own, other in zip(row["accuracies"], base, strict=True)]
        row["gains"] = [round(gain, 1) + 0.0 for gain in gains]  # no -0.0
    return rows


def _row(name: str, curves: Mapping[str, Curve], seeds: Sequence[int]) -> dict[str, Any]:
    numbers = chosen(name, curves)
    own = [curves[run_name(name, numbers, seed)].at_end(LAST) for seed in seeds]
    return {
        "algorithm": name,
        "setting": dict(numbers),
        "at_edge": at_edge(name, numbers),
        "validation": round(curves[run_name(name, numbers, None)].at_end(LAST_TUNING), 4),
        "accuracies": [round(accuracy, 4) for accuracy in own],
        "mean": round(statistics.mean(own), 4),
        "spread": round(statistics.stdev(own), 4) if len(own) > 1 else 0.0,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as Markdown; a number with a star lies at the end of what was tried."""
    head = ("algorithm", "setting", "validation", "test accuracy", "points against FedAvg")
    body = [
        (
            row["algorithm"],
            ", ".join(
                f"{key} {value:g}{'*' if key in row['at_edge'] else ''}"
                for key, value in row["setting"].items()
            ),
            f"{row['validation']:.4f}",
            f"{row['mean']:.4f} ± {row['spread']:.4f}",
            "" if row["algorithm"] == BASELINE else " ".join(f"{g:+.1f}" for g in row["gains"]),
        )
        for row in rows
    ]
    return markdown(head, body)


def _tuned(setting: Setting, kept: Kept, processes: int) -> Kept:
    """Returns what is kept with a curve for every setting that tuning tries."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        data = Path(folder) / "held-out.npz"
        hold_out(setting.dataset, data, HELD_OUT)

        def learned(kept: Kept, tried: Mapping[str, Sequence[Numbers]]) -> Kept:
            wanted = {
                run_name(name, numbers, None): config_of(
                    name, numbers, setting, str(data), TUNING_SEED
                )
                for name, settings in tried.items()
                for numbers in settings
            }
            return learn_all(wanted, kept, processes, _tell)

        first = {name: rates(name) for name in ALGORITHMS}
        kept = learned(kept, first)
        rate = {
            name: best(name, tried, kept.curves)["local_learning_rate"]
            for name, tried in first.items()
        }
        return learned(kept, {name: others(name, rate[name]) for name in ALGORITHMS})


def _tested(setting: Setting, kept: Kept, seeds: Sequence[int], processes: int) -> Kept:
    """Returns what is kept with a curve for the chosen setting of every algorithm and each seed."""
    numbers = {name: chosen(name, kept.curves) for name in ALGORITHMS}
    wanted = {
        run_name(name, own, seed): config_of(name, own, setting, setting.dataset, seed)
        for seed in seeds
        for name, own in numbers.items()
    }
    return learn_all(wanted, kept, processes, _tell)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="So many, from 1 on; 0 is for tuning.")] = 3,
    rounds: Annotated[int, typer.Option(min=LAST_TUNING, help="Of each run.")] = Setting.rounds,
    processes: Annotated[int, typer.Option(min=1, help="So many runs at a time.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option(help="Default: benchmarks/results/<date>-algorithms.json. Goes on with one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Tune and compare algorithms under label skew; print accuracies over seeds.

    Example: python -m benchmarks.algorithms --out benchmarks/results/algorithms.json
    """
    setting, numbers = Setting(rounds=rounds), range(1, seeds + 1)
    path = result_path(out, "algorithms")
    with told_in_a_line():
        kept = open_kept(path, asdict(setting))
        kept = _tested(setting, _tuned(setting, kept, processes), numbers, processes)
    rows = summary(kept.curves, numbers)
    kept.write(date=time.strftime("%Y-%m-%d"), rows=rows)
    print(json.dumps(rows, indent=2) if as_json else f"{table(rows)}\n\n{path}")


if __name__ == "__main__":
    typer.run(main)
