"""Does a run survive its clients? `python -m benchmarks.faults`.

A tenth of the clients suffer a fault, in every round: each kind of fault alone, then one drawn from
all. Each run goes through the inline engine into a folder of its own. It has to end, to name just
those who suffered and what became of them, and to leave a finite model within two points of the
accuracy of a run without faults.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import tomli_w
import torch
import typer

from benchmarks.command import result_path, told_in_a_line
from benchmarks.machine import machine, slug
from benchmarks.text import markdown
from clients.host import open_host
from deploy.simulate import open_grid, simulate
from server.records import RoundRecord
from server.run_folder import RunFolder
from server.sampling import draw_clients
from shared_models.arrays import load_arrays
from shared_models.config import Config, parse_config
from shared_models.config.faults import FAULT_KINDS
from shared_models.errors import InputError, did_you_mean
from shared_models.faults import fault_of
from shared_models.files import write_json

CLEAN = "none"
ALLOWED = 0.02


@dataclass(frozen=True)
class Fate:
    """What becomes of a client that suffers a fault, and words that its reason has in it."""

    outcome: str
    reason: str = ""


FATES: Mapping[str, Fate] = MappingProxyType(
    {
        "crash": Fate("failed", "injected crash"),
        "hang": Fate("late", "no answer"),
        "delay": Fate("late", "an answer after 60 s"),
        "nan": Fate("refused", "NaN or infinite"),
        "inf": Fate("refused", "NaN or infinite"),
        "wrong_shape": Fate("refused", "shape (1, "),
        "wrong_dtype": Fate("refused", "dtype torch.float16"),
        "missing_key": Fate("refused", "missing arrays"),
        "huge_norm": Fate("refused", "norm of the delta"),
        "sign_flip": Fate("tolerated"),
        "label_flip": Fate("tolerated"),
        "duplicate_reply": Fate("refused", "partial is about clients"),
        "stale_reply": Fate("refused", "answers ("),
    }
)


@dataclass(frozen=True)
class Setup:
    """A task on so many clients, trained for long enough that two points are no noise."""

    task: str
    clients: int
    clients_per_round: int
    rounds: int
    local_epochs: int = 1
    aggregator: str = "trimmed_mean"
    rate: float = 0.1

    def config(self, kind: str, changes: Sequence[str] = ()) -> Config:
        """Returns the config of a run in which clients suffer this kind of fault."""
        stage = {
            "name": "train",
            "kind": "train",
            "rounds": self.rounds,
            "clients_per_round": self.clients_per_round,
            "local_epochs": self.local_epochs,
            "local_learning_rate": 0.1,
            "server_optimizer": "momentum",
            "aggregator": self.aggregator,
            "round_deadline_s": 30.0,  # those with `delay` answer after 60
        }
        values = {
            "name": f"faults-{kind}",
            "task": self.task,
            "data": {"clients": self.clients},
            "plan": {"trainer": "fused", "block_size": 10},
            "evaluate": {"every": self.rounds},
            "faults": {} if kind == CLEAN else {kind: self.rate},
            "stages": [stage],
        }
        return parse_config(tomli_w.dumps(values), "benchmarks.faults", overrides=changes)


SETUPS: Mapping[str, Setup] = MappingProxyType(
    {
        "digits-cnn": Setup("digits-cnn", 40, 20, rounds=40, local_epochs=2),
        "mnist-cnn": Setup("mnist-cnn", 1000, 50, rounds=40),
    }
)


@dataclass(frozen=True)
class Survived:
    """What a run came to; `faults` is its failure table, `wrong` says what that gets wrong."""

    kind: str
    accuracy: float
    finite: bool
    faults: Mapping[str, Mapping[str, int]]
    wrong: tuple[str, ...]
    seconds: float


def survive(config: Config, kind: str) -> Survived:
    """Runs a config and looks at what it left; raises `WildflowerError` if it does not end."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as name, open_grid(config) as grid:
        folder = simulate(config, Path(name) / "run", lambda _: None, grid, resume=False)
        (stage,) = folder.summary()["stages"]
        weights = load_arrays(folder.model_file).values()
        return Survived(
            kind=kind,
            accuracy=stage["eval"]["accuracy"],
            finite=all(bool(torch.isfinite(tensor).all()) for tensor in weights),
            faults=stage["faults"],
            wrong=tuple(wrong_in(folder, config)),
            seconds=time.perf_counter() - began,
        )


def wrong_in(folder: RunFolder, config: Config) -> Iterator[str]:
    """Yields what a run's records get wrong, beside who was drawn for which fault."""
    clients = open_host(config).client_ids
    records = folder.records()
    if len(records) != config.learning_stages[0].rounds:
        yield f"{len(records)} rounds are told"
    for record in records:
        suffered = dict(_suffered(config, record, clients))
        fates = {client_id: FATES[kind].outcome for client_id, kind in suffered.items()}
        told = [(fault.client_id, fault.kind, fault.outcome) for fault in record.injected]
        if Counter(told) != Counter((k, suffered[k], fates[k]) for k in suffered):
            yield f"round {record.round}: injected is {sorted(told)}, drawn were {suffered}"
        lost = {client_id: fate for client_id, fate in fates.items() if fate != "tolerated"}
        named = [(failure.client_id, failure.status) for failure in record.failures]
        if sorted(named) != sorted(lost.items()):
            yield f"round {record.round}: failures are {sorted(named)}, expected {lost}"
        for failure in record.failures:
            kind = suffered.get(failure.client_id)
            if kind and FATES[kind].reason not in failure.reason:
                yield f"round {record.round}: {kind} is told as {failure.reason!r}"


def _suffered(
    config: Config, record: RoundRecord, clients: Sequence[int]
) -> Iterator[tuple[int, str]]:
    about = (record.stage, record.round, 0)
    asked = config.stage(record.stage).clients_per_round
    for client_id in draw_clients(clients, asked, config.seed, about):
        if kind := fault_of(config.faults, config.seed, about, client_id):
            yield client_id, kind


def report(setup: Setup, clean: Survived, runs: Sequence[Survived]) -> dict[str, Any]:
    """Returns what goes into the results file, as plain values."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "setup": asdict(setup),
        "clean_accuracy": clean.accuracy,
        "runs": [asdict(run) | {"passed": passed(run, clean)} for run in runs],
    }


def passed(run: Survived, clean: Survived) -> bool:
    """Whether a run is as good as one without faults, and tells the truth about them."""
    return run.finite and not run.wrong and run.accuracy >= clean.accuracy - ALLOWED


def table(clean: Survived, runs: Sequence[Survived]) -> str:
    """Returns a line per kind of fault, as Markdown."""
    outcomes = ("injected", "refused", "failed", "late", "tolerated")
    head = ["fault", *outcomes, "accuracy", "points", "table", "s", ""]
    return markdown(head, [_cells(run, clean, outcomes) for run in (clean, *runs)])


def _cells(run: Survived, clean: Survived, outcomes: Sequence[str]) -> list[str]:
    counts = [str(sum(told[name] for told in run.faults.values())) for name in outcomes]
    points = f"{100 * (run.accuracy - clean.accuracy):+.2f}"
    accurate = "wrong" if run.wrong else "accurate"
    found = "passed" if passed(run, clean) else "FAILED"
    return [run.kind, *counts, f"{run.accuracy:.4f}", points, accurate, f"{run.seconds:.1f}", found]


def main(
    task: Annotated[str, typer.Option(help="digits-cnn or mnist-cnn.")] = "digits-cnn",
    aggregator: Annotated[str, typer.Option(help="A robust one.")] = "trimmed_mean",
    rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of clients.")] = 0.1,
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: what the task needs.")] = None,
    kinds: Annotated[str, typer.Option(help="Names with commas between.")] = ",".join(
        (*FAULT_KINDS, "any")
    ),
    changes: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A key=value of the config.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Default: benchmarks/results/<date>-faults-<task>-....json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run every kind of fault at a tenth of the clients; compare with a run without.

    Example: python -m benchmarks.faults --task mnist-cnn -s data.name=mnist5k
    """
    path = result_path(out, f"faults-{task}-{aggregator}-{slug()}")
    with told_in_a_line():
        setup = replace(_find_setup(task), aggregator=aggregator, rate=rate)
        setup = setup if rounds is None else replace(setup, rounds=rounds)
        found = [
            survive(setup.config(kind, changes or ()), kind) for kind in (CLEAN, *kinds.split(","))
        ]
    clean, *runs = found
    told = report(setup, clean, runs)
    write_json(path, told)
    print(json.dumps(told, indent=2) if as_json else f"{table(clean, runs)}\n\n{path}")
    for run in runs:
        for line in run.wrong:
            print(f"{run.kind}: {line}", file=sys.stderr)
    raise typer.Exit(0 if all(passed(run, clean) for run in runs) else 1)


def _find_setup(task: str) -> Setup:
    if task not in SETUPS:
        raise InputError(f"--task {task}: {did_you_mean(task, SETUPS)}")
    return SETUPS[task]


if __name__ == "__main__":
    typer.run(main)
