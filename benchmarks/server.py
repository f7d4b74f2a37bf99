"""What the server's device does in a second: folds, robust rules, evaluation, training of blocks.

    python -m benchmarks.server --device cuda --json

Examples and updates are random numbers of the right shapes: a machine without a network will do.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer

from benchmarks.command import told_in_a_line
from benchmarks.machine import machine
from benchmarks.text import markdown, three_figures
from benchmarks.workloads import BATCH_SIZE, LEARNING_RATE, SEED, STAGE, WORKLOADS
from clients.host import Host
from clients.partitions import partition
from server.aggregators import Aggregator
from server.aggregators.geometric_median import geometric_median
from server.aggregators.krum import krum, multi_krum
from server.aggregators.median import median
from server.aggregators.placed import placed_on
from server.aggregators.trimmed_mean import trimmed_mean
from server.aggregators.weighted_mean import weighted_mean
from server.device import HOST, placed
from server.evaluation import make_evaluator, pick_device
from shared_models.arrays import Arrays, roles_of, size_bytes, with_role
from shared_models.checks import check_arrays, check_norm
from shared_models.config import Config, Data, Evaluate, Plan, TrainStage
from shared_models.datasets.dataset import Dataset, Split
from shared_models.errors import WildflowerError
from shared_models.messages import BlockRequest
from shared_models.partial import Partial, Row, Sum, SumSpec
from shared_models.task import Task
from shared_models.tasks import load_task
from shared_models.versions import versions

DeviceName = Literal["cpu", "cuda"]
Told = dict[str, Any]

# A fold reads float32 and float64 and writes float64, where its partial is float32.
_MOVED = (4 + 8 + 8) / 4
_PARTIALS = 8
_UPDATES = 100
_IMAGES = 10_000
_BATCHES: Mapping[str, tuple[int, ...]] = {
    "cpu": (50, 100, 250, 1000),
    "cuda": (100, 1000, 2500, 10_000),
}
_EXAMPLES = {"W1": 60, "W2": 60, "W3": 600, "W4": 20}
_BLOCKS: Mapping[str, tuple[int, ...]] = {"cpu": (16,), "cuda": (32, 128, 256)}


@dataclass(frozen=True)
class Asked:
    """What is measured; `tiny` makes everything so small that it takes seconds."""

    device: torch.device
    repeat: int = 5
    training: bool = False
    compiled: bool = False
    tiny: bool = False

    def few(self, number: int) -> int:
        """Returns a number of things, or a small one."""
        return min(number, 10) if self.tiny else number


def measure(asked: Asked) -> Told:
    """Returns all that was measured, with what it was measured on, as plain values."""
    load = os.getloadavg()[0]
    gpu = torch.cuda.get_device_name() if asked.device.type == "cuda" else None
    return {
        "device": asked.device.type,
        "threads": torch.get_num_threads(),
        "load_before": round(load, 1),
        "machine": {**machine(), "gpu": gpu},
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "transfer": list(_transfers(asked)),
        "aggregation": list(_aggregation(asked)),
        "robust": list(_robust(asked)),
        "evaluation": list(_evaluation(asked)),
        "training": list(_training(asked)) if asked.training else [],
    }


def seconds_of(asked: Asked, *calls: Callable[[], object]) -> list[list[float]]:
    """Returns the seconds of each call, `repeat` times: they take turns, after one run that warms.

    A machine that is slowed down by others is so for all of them.
    """
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(asked.repeat + 1):
        for own, call in zip(found, calls, strict=True):
            _wait(asked.device)
            began = time.perf_counter()
            call()
            _wait(asked.device)
            if turn:
                own.append(time.perf_counter() - began)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _copier(asked: Asked) -> tuple[Callable[[], object], int]:
    """Returns what copies a large tensor there, and how many bytes that reads and writes."""
    size = 2**20 if asked.tiny else 2**28
    source = torch.zeros(size // 4, device=asked.device)
    target = torch.empty_like(source)
    return functools.partial(target.copy_, source), 2 * size


def _transfers(asked: Asked) -> Iterator[Told]:
    """Yields what goes from the host's memory to a GPU: as it lies there, and pinned before."""
    if asked.device.type != "cuda":
        return
    arrays = {"w": torch.ones(2**26)}
    pinned = {"w": arrays["w"].pin_memory()}
    calls = {
        "pageable": lambda: arrays["w"].to(asked.device),
        "pinned on the way": lambda: placed(arrays, asked.device),
        "pinned": lambda: pinned["w"].to(asked.device, non_blocking=True),
    }
    for name, seconds in zip(calls, seconds_of(asked, *calls.values()), strict=True):
        gb_per_s = size_bytes(arrays) / statistics.median(seconds) / 1e9
        yield {"what": name, "gb_per_s": _short(gb_per_s)}


def _models(asked: Asked) -> Iterator[tuple[str, Arrays]]:
    for name in ("mnist-2nn", "mnist-cnn-mcmahan"):
        task = load_task(name)
        yield name, with_role(task.build(SEED), roles_of(task.model()), "trainable")
    arrays, size = (2, 100) if asked.tiny else (50, 500_000)
    yield "synthetic-25m", {f"layer.{k}": torch.ones(size) for k in range(arrays)}


def _aggregation(asked: Asked) -> Iterator[Told]:
    """Yields how fast partials of each model are checked and folded, beside a plain copy."""
    places = {"host": HOST, "device": asked.device}
    for name, arrays in _models(asked):
        for place, where in places.items():
            if place == "device" and asked.device == HOST:
                continue
            own = [placed({n: t + k for n, t in arrays.items()}, where) for k in range(_PARTIALS)]
            yield {"model": name, "partials_in": place, **_fold(asked, own)}


def _fold(asked: Asked, updates: list[Arrays]) -> Told:
    rule = placed_on(asked.device, weighted_mean())
    partials = [Partial({"delta": Sum(own, 10.0)}, (Row(0, 10),)) for own in updates]
    copy, copied = _copier(asked)

    def fold() -> object:
        return functools.reduce(rule.add, partials, rule.init())

    def check() -> None:
        specs, roles = {"delta": SumSpec("trainable")}, dict.fromkeys(updates[0], "trainable")
        for own in updates:
            check_arrays({"delta": own}, specs, updates[0], roles)  # type: ignore[arg-type]
            check_norm(own, np.inf)

    folds, checks, copies = seconds_of(asked, fold, check, copy)
    size = sum(map(size_bytes, updates))
    ratios = [size / f / (copied / c) for f, c in zip(folds, copies, strict=True)]
    return {
        "parameters": sum(tensor.numel() for tensor in updates[0].values()),
        "fold_gb_per_s": _short(size / statistics.median(folds) / 1e9),
        "check_gb_per_s": _short(size / statistics.median(checks) / 1e9),
        "copy_gb_per_s": _short(copied / statistics.median(copies) / 1e9),
        "of_copy": _short(statistics.median(ratios)),
        "moved_of_copy": _short(_MOVED * statistics.median(ratios)),
    }


def _robust(asked: Asked) -> Iterator[Told]:
    """Yields the seconds that each rule takes for the updates of one round of `mnist-2nn`."""
    task, clients = load_task("mnist-2nn"), asked.few(_UPDATES)
    like = with_role(task.build(SEED), roles_of(task.model()), "trainable")
    rng = torch.Generator().manual_seed(SEED)
    blocks = [
        Partial(
            {},
            tuple(Row(client, 60) for client in range(first, first + 5)),
            {"delta": {n: torch.randn(5, *t.shape, generator=rng) for n, t in like.items()}},
        )
        for first in range(0, clients, 5)
    ]
    rules: dict[str, Aggregator] = {
        "median": median(),
        "trimmed_mean": trimmed_mean(0.1),
        "krum": krum(0.1),
        "multi_krum": multi_krum(0.1),
        "geometric_median": geometric_median(),
    }
    for name, rule in rules.items():
        own = placed_on(asked.device, rule)
        (seconds,) = seconds_of(asked, functools.partial(_finished, own, blocks))
        told = _short(statistics.median(seconds))
        yield {"rule": name, "model": task.name, "updates": clients, "seconds": told}


def _finished(rule: Aggregator, partials: Iterable[Partial]) -> object:
    return rule.finish(functools.reduce(rule.add, partials, rule.init()))


def _evaluation(asked: Asked) -> Iterator[Told]:
    """Yields images a second by batch size and precision; both precisions take turns."""
    task = load_task("mnist-cnn")
    images = _random_split(task, asked.few(_IMAGES))
    params = task.build(SEED)
    for size in _BATCHES[asked.device.type][: 1 if asked.tiny else None]:
        evaluators = {
            dtype: make_evaluator(task, images, asked.device, size, dtype)
            for dtype in (None, torch.bfloat16)
        }
        calls = [functools.partial(own, params) for own in evaluators.values()]
        for dtype, seconds in zip(evaluators, seconds_of(asked, *calls), strict=True):
            yield {
                "task": task.name,
                "images": len(images),
                "batch_size": size,
                "autocast": "none" if dtype is None else "bfloat16",
                "images_per_s": round(len(images) / statistics.median(seconds)),
            }


def _random_split(task: Task, examples: int) -> Split:
    """Returns examples as the task's dataset has them: bytes of images, floats of sensors."""
    rng = np.random.default_rng(SEED)
    shape = (examples, *task.input.shape)
    image = len(task.input.shape) == 3
    x = rng.integers(0, 256, shape, np.uint8) if image else rng.random(shape, np.float32)
    return Split(x, rng.integers(0, len(task.labels), examples))


def _training(asked: Asked) -> Iterator[Told]:
    """Yields how many clients a second the vectorised trainer trains, by the size of a block."""
    for name, examples in _EXAMPLES.items():
        for block in _BLOCKS[asked.device.type]:
            clients = min(block, 2 if asked.tiny else WORKLOADS[name].cohort)
            host = _host(asked, WORKLOADS[name].task, clients, asked.few(examples))
            train = functools.partial(_train, host, host.trainer(STAGE), clients)
            (seconds,) = seconds_of(asked, train)
            yield {
                "workload": name,
                "task": host.task.name,
                "clients_per_block": clients,
                "compiled": asked.compiled,
                "clients_per_s": _short(clients / statistics.median(seconds)),
            }
            if clients < block:
                break


def _host(asked: Asked, task_name: str, clients: int, examples: int) -> Host:
    """Returns who hosts so many clients of a workload, with random examples."""
    task = load_task(task_name)
    device: DeviceName = "cpu" if asked.device == HOST else "cuda"
    stage = TrainStage(
        name=STAGE,
        kind="train",
        rounds=1,
        clients_per_round=clients,
        batch_size=BATCH_SIZE,
        local_learning_rate=LEARNING_RATE,
    )
    config = Config(
        task=task_name,
        seed=SEED,
        data=Data(clients=clients),
        evaluate=Evaluate(data="none"),
        plan=Plan(trainer="vectorised", block_size=clients, device=device, compile=asked.compiled),
        stages=(stage,),
    )
    dataset = Dataset("random", _random_split(task, clients * examples), None)
    split = partition(dataset.train, config.data, SEED)
    return Host(config, task, dataset, split, tuple(range(clients)), shared=True)


def _train(host: Host, trainer: Callable[..., Partial], clients: int) -> None:
    request = BlockRequest(STAGE, 1, 0, 0, tuple(range(clients)), host.task.build(SEED))
    bad = [row.reason for row in trainer(request, host.data_of).rows if row.status != "ok"]
    if bad:
        raise WildflowerError(f"{host.task.name}: {len(bad)} clients failed: {bad[0]}")


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def describe(told: Told) -> str:
    """Returns the measurements as tables for a person."""
    kinds = ("transfer", "aggregation", "robust", "evaluation", "training")
    return "\n\n".join(_table(told[kind]) for kind in kinds if told[kind])


def _table(rows: list[Told]) -> str:
    def cell(value: Any) -> str:
        return three_figures(value) if isinstance(value, float) else str(value)

    return markdown(list(rows[0]), [[cell(value) for value in row.values()] for row in rows])


def main(
    device: Annotated[DeviceName, typer.Option(help="Where the server works.")] = "cpu",
    repeat: Annotated[int, typer.Option(min=1, help="How often each thing is measured.")] = 5,
    training: Annotated[
        bool | None,
        typer.Option("--training/--no-training", help="Train blocks, too. Default: on a GPU."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the trainer's step.")
    ] = False,
    tiny: Annotated[bool, typer.Option(help="Everything small: does it run?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure what the server's device does in a second.

    Example: python -m benchmarks.server --device cuda --json
    """
    torch.set_num_threads(1)  # as the server does
    with told_in_a_line():
        chosen = pick_device(device, "--device")
        wanted = training if training is not None else chosen != HOST
        told = measure(Asked(chosen, repeat, wanted, compiled, tiny))
    print(json.dumps(told, indent=2) if as_json else describe(told))


if __name__ == "__main__":
    typer.run(main)
