"""Does every combination of parts that the config accepts run? `python -m benchmarks.combinations`.

Each runs three rounds of `digits-cnn` through the inline engine into a folder of its own, and has
to end with finite weights; what is learned without labels is finetuned for two more. What is
refused is listed with its reason.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.machine import machine
from deploy.simulate import open_grid, simulate
from shared_models.arrays import load_arrays
from shared_models.config import Config, parse_config
from shared_models.config.parts import CHOICES, PRETEXTS
from shared_models.errors import InputError

_TOML = """
name = "combination"
task = "digits-cnn"

[data]
clients = 12

[plan]
trainer = "loop"
block_size = 4

[[stages]]
name = "train"
rounds = 3
clients_per_round = 9
local_learning_rate = 0.05
"""
_FINETUNE = """
[[stages]]
name = "finetune"
kind = "finetune"
rounds = 2
clients_per_round = 9
local_learning_rate = 0.05
"""
# What a choice has no default for, and rates that suit the adaptive ones.
_NUMBERS: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("objective", "adversarial"): {"adversarial_epsilon": 0.05},
    ("aggregator", "clipped_mean"): {"clip_norm": 1.0},
    ("server_optimizer", "adagrad"): {"server_learning_rate": 0.03},
    ("server_optimizer", "adam"): {"server_learning_rate": 0.03},
    ("server_optimizer", "yogi"): {"server_learning_rate": 0.03},
    ("local_optimizer", "adam"): {"local_learning_rate": 0.002},
    ("local_optimizer", "adamw"): {"local_learning_rate": 0.002},
    ("local_schedule", "step"): {"local_decay_every": 2},
    ("server_schedule", "step"): {"server_decay_every": 2},
}
Choice = Mapping[str, str]


def every_combination() -> Iterator[Choice]:
    """Yields all combinations of objective, aggregator and the two optimisers."""
    parts = ("objective", "aggregator", "server_optimizer", "local_optimizer")
    for chosen in itertools.product(*(CHOICES[part] for part in parts)):
        yield dict(zip(parts, chosen, strict=True))


def every_pair() -> Iterator[Choice]:
    """Yields all pairs of choices of two different parts."""
    for one, other in itertools.combinations(CHOICES, 2):
        for mine, theirs in itertools.product(CHOICES[one], CHOICES[other]):
            yield {one: mine, other: theirs}


def config_of(choice: Choice, *overrides: str) -> Config:
    """Returns a combination's config; raises `ConfigError` when it makes no sense."""
    is_pretext = choice.get("objective") in PRETEXTS
    told: dict[str, str | float] = {"kind": "pretrain" if is_pretext else "train"}
    for part, chosen in choice.items():
        told |= {part: chosen, **_NUMBERS.get((part, chosen), {})}
    own = [f"stages.train.{key}={value}" for key, value in told.items()]
    text = _TOML + _FINETUNE if is_pretext else _TOML
    return parse_config(text, "combination", overrides=[*own, *overrides])


def run(config: Config, folder: Path) -> float:
    """Runs a config into a new folder; returns the accuracy, NaN unless all weights are finite."""
    with open_grid(config) as grid:
        done = simulate(config, folder, lambda _: None, grid, resume=False)
    weights = load_arrays(done.model_file)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        return float("nan")
    return float(done.summary()["stages"][-1]["eval"]["accuracy"])


def main(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Runs all combinations; fails when one does."""
    torch.set_num_threads(1)
    refused: Counter[str] = Counter()
    accuracies: dict[str, float] = {}
    began = time.perf_counter()
    for choice in every_combination():
        name = " ".join(choice.values())
        try:
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
                accuracies[name] = run(config_of(choice), Path(folder) / "run")
        except InputError as error:
            refused[str(error).removeprefix("combination: stages.train.")] += 1
            continue
        if not as_json:
            print(f"{name}: accuracy {accuracies[name]:.3f}", flush=True)
    told = {
        "machine": machine(),
        "ran": len(accuracies),
        "diverged": [name for name, value in accuracies.items() if math.isnan(value)],
        "lowest": min(accuracies.items(), key=lambda item: item[1]),
        "refused": dict(refused),
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(told, indent=None if as_json else 2))
    raise typer.Exit(int(bool(told["diverged"])))


if __name__ == "__main__":
    typer.run(main)
