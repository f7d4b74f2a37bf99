"""Quantization after training (PTQ) and in training (QAT): `python -m benchmarks.quantization`.

Both go on from the same federated float model for equally many rounds: PTQ as before, with its
weights rounded at the end; QAT on rounded weights (`quantize_aware = true`). Accuracy is that of
the rounded model on test data, rounding simulated as shared_models/quantization.py does it: files
have 8 bits, fewer are simulated only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import torch
import typer

from benchmarks.command import result_path, told_in_a_line
from benchmarks.text import markdown
from clients.host import Host, open_host
from server.coordinator import begin_stage, make_stage_run, run_round
from server.evaluation import evaluation_split, make_evaluator
from server.population import merge_hellos
from shared_models.arrays import Arrays
from shared_models.config import Config, parse_config
from shared_models.errors import InputError, RoundError
from shared_models.messages import BlockRequest, Reply
from shared_models.quantization import Grid, rounding

BITS = (8, 4, 3, 2)
SCALES = ("channel", "tensor")


@dataclass(frozen=True)
class Setting:
    """A task, how long it is trained in floats, and how long it goes on in either way."""

    task: str
    data: dict[str, Any]
    stage: dict[str, Any]
    rounds: int
    more: int


@dataclass(frozen=True)
class Found:
    """Accuracies of one task at one grid; None where training did not converge."""

    task: str
    bits: int
    scales: str
    float32: float
    ptq: float
    qat: float | None


_MNIST = {"name": "mnist", "partition": "iid", "clients": 200, "max_examples_per_client": 60}
_TEN = {"clients_per_round": 10, "local_learning_rate": 0.1}
SETTINGS = (
    Setting("mnist-cnn", _MNIST, _TEN, rounds=30, more=8),
    Setting("mnist-cnn-small", _MNIST, _TEN, rounds=30, more=8),
    Setting(
        "watch-lstm",
        {"partition": "natural", "max_examples_per_client": 200},
        {"clients_per_round": 8, "local_learning_rate": 0.1, "local_clip_norm": 1.0},
        rounds=60,
        more=12,
    ),
)


def measure(setting: Setting, bits: Sequence[int]) -> Iterator[Found]:
    """Yields what became of one task at each grid."""
    host = open_host(config_of(setting))
    start = trained(host, "train", host.task.build(host.config.seed))
    ours = trained(host, "more", start)
    exact = accuracy(host, ours, None)
    for scales in SCALES:
        for own in bits:
            grid = Grid(own, 8, scales)  # type: ignore[arg-type]
            ptq = accuracy(host, ours, grid)
            yield Found(setting.task, own, scales, exact, ptq, _aware(host, start, grid))


def _aware(host: Host, start: Arrays, grid: Grid) -> float | None:
    keys = {"quantize_aware": True, "weight_bits": grid.weight_bits, "weight_scales": grid.scales}
    stages = tuple(
        stage.model_copy(update=keys | {"activation_bits": grid.activation_bits})
        for stage in host.config.learning_stages
    )
    aware = replace(host, config=host.config.model_copy(update={"stages": stages}))
    try:
        return accuracy(host, trained(aware, "more", start), grid)
    except RoundError:
        return None


def config_of(setting: Setting) -> Config:
    """Returns a config with two stages: `train`, and `more` that goes on."""
    stages = [
        {"name": "train", "kind": "train", "rounds": setting.rounds, **setting.stage},
        {"name": "more", "kind": "finetune", "rounds": setting.more, **setting.stage},
    ]
    plan = {"trainer": "loop", "block_size": 10}
    values = {"task": setting.task, "data": setting.data, "plan": plan, "stages": stages}
    return parse_config(tomli_w.dumps(values), "quantization")


def trained(host: Host, stage_name: str, params: Arrays) -> Arrays:
    """Returns what a stage makes of weights."""

    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        return (trainer(request, host.data_of) for request in requests)

    trainer, stage = host.trainer(stage_name), host.config.stage(stage_name)
    run = make_stage_run(host.config, stage, host.task, merge_hellos({1: host.hello()}), None)
    state = begin_stage(run, params)
    while state.round < stage.rounds:
        state = run_round(run, state, send, lambda _: None).state
    return state.params


def accuracy(host: Host, params: Arrays, grid: Grid | None) -> float:
    """Returns the accuracy on test data, of a rounded model where there is a grid."""
    task = host.task
    split = evaluation_split(host.config, task)
    if split is None:
        raise InputError(f"{task.name} has no test data")
    plain = task.make_model
    if grid is not None:
        task = replace(task, make_model=lambda: rounding(plain(), grid))
    return make_evaluator(task, split, torch.device("cpu"), 100)(params)["accuracy"]


def table(found: Sequence[Found]) -> str:
    """Returns a table in Markdown."""
    head = ("task", "weight bits", "a scale a", "float32", "PTQ", "QAT", "gain")
    rows = [
        (f.task, str(f.bits), f.scales, f"{f.float32:.4f}", f"{f.ptq:.4f}")
        + (("diverged", "") if f.qat is None else (f"{f.qat:.4f}", f"{f.qat - f.ptq:+.4f}"))
        for f in found
    ]
    return markdown(head, rows)


def main(
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="Only these weight bits.")] = None,
    out: Annotated[Path | None, typer.Option(help="Default: benchmarks/results/<date>.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Compare PTQ with QAT and write the results; minutes on two idle cores."""
    torch.set_num_threads(1)
    with told_in_a_line():
        found: list[Found] = []
        for setting in SETTINGS:
            if not task or setting.task in task:
                for one in measure(setting, bits or BITS):
                    found.append(one)
                    typer.echo(f"{one}", err=True)
    told = {"settings": [asdict(s) for s in SETTINGS], "found": [asdict(f) for f in found]}
    text = json.dumps(told, indent=2)
    result_path(out, "quantization").write_text(text + "\n")
    typer.echo(text if as_json else table(found))


if __name__ == "__main__":
    typer.run(main)
