"""Full int8 by clients' ranges against training examples: `python -m benchmarks.calibration`.

Each model is trained once, by its example config; its files differ in nothing but the ranges of
their activations. Accuracy is that of the whole test set. Everything that is drawn (examples,
clients, noise) is drawn `DRAWS` times; the mean and the worst are told.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.command import result_path, told_in_a_line
from benchmarks.machine import machine
from benchmarks.text import markdown
from clients.host import Host, open_host
from deploy.edge.runtimes import open_model
from deploy.export.exporter import attempt
from deploy.export.formats import FORMATS, export
from deploy.export.formats.matching import probes
from deploy.export.formats.source import Source
from deploy.simulate import open_grid, simulate
from server.calibration import answer_check, ask, describe, make_requests
from server.evaluation import evaluation_split
from server.population import merge_hellos
from server.run_folder import RunFolder
from shared_models.arrays import load_arrays
from shared_models.config import CalibrateStage, Config, read_config
from shared_models.datasets.dataset import Split
from shared_models.errors import ExportError
from shared_models.files import write_json
from shared_models.messages import BlockRequest, Reply
from shared_models.randomness import generator
from shared_models.ranges import Range

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNS: Mapping[str, tuple[str, ...]] = {
    "mnist-cnn": ("stages.train.rounds=30", "evaluate.every=10"),
    "watch-cnn": (),
}
CENTRAL = "central, 200 examples"
FILES = ("tflite-int8", "onnx-int8")
DRAWS = 5


@dataclass(frozen=True)
class Case:
    """A calibration: the stage's keys, None for training examples."""

    name: str
    keys: Mapping[str, Any] | None = field(default_factory=dict)


CASES = (
    Case(CENTRAL, None),
    Case("federated, minmax"),
    Case("federated, percentile 99.99", {"method": "percentile"}),
    Case("federated, percentile 99.9", {"method": "percentile", "percentile": 99.9}),
    Case("federated, epsilon 8", {"noise_epsilon": 8.0}),
    Case("federated, epsilon 1", {"noise_epsilon": 1.0}),
)


@dataclass(frozen=True)
class Trained:
    """A model to be quantized, and the examples that files are measured on."""

    host: Host
    folder: RunFolder
    source: Source
    test: Split


@dataclass(frozen=True)
class Row:
    """A file's accuracy over all draws, and how its mean differs from central calibration's."""

    task: str
    calibration: str
    file: str
    clients: int
    draws: int
    accuracy: float
    worst: float
    points_against_central: float = 0.0


def train(config: Config, path: Path) -> None:
    """Trains a model into a run folder, unless it is there."""
    if RunFolder(path).summary().get("status") == "done":
        return
    learning = config.model_copy(update={"stages": config.learning_stages})
    with open_grid(learning) as grid:
        simulate(learning, path, lambda _: None, grid, resume=path.exists())


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Trained]:
    """Yields a trained model whose conversions are made once."""
    config = RunFolder(path).config()
    host = open_host(config)
    model = host.task.model().eval()
    model.load_state_dict(load_arrays(RunFolder(path).model_file))
    test = evaluation_split(config, host.task)
    if test is None:
        raise ExportError(f"{path}: has no test data")
    examples = probes(host.task.input)
    with tempfile.TemporaryDirectory() as workshop:
        yield Trained(host, RunFolder(path), Source(model.float(), examples, Path(workshop)), test)


def centrally(trained: Trained, draw: int) -> Source:
    """Returns the model with 200 training examples to calibrate by."""
    train, rng = trained.host.dataset.train, generator(draw, "export", "calibration")
    chosen = np.sort(rng.choice(len(train), 200, replace=False))
    return replace(trained.source, calibration=trained.host.task.input.prepare(train.x[chosen]))


def told_by_clients(trained: Trained, stage: CalibrateStage, draw: int) -> dict[str, Any]:
    """Returns what the stage's `calibration.json` would hold; clients are those of the run."""
    config = trained.host.config
    changes = {"stages": (*config.learning_stages, stage), "seed": draw}
    host = replace(trained.host, config=config.model_copy(update=changes))
    population = merge_hellos({1: host.hello()})
    params = load_arrays(trained.folder.model_file)
    requests = make_requests(host.config, stage, population, params)

    def send(asked: Iterable[BlockRequest]) -> Iterator[Reply]:
        calibrate = host.calibrator(stage.name)
        return (calibrate(request, host.data_of) for request in asked)

    answers = ask(requests, send, answer_check(stage, host.task, population))
    return describe(stage, answers, host.task)


def accuracies(trained: Trained, source: Source) -> dict[str, float]:
    """Returns the accuracy of each file that is made of this source."""
    task = trained.host.task
    x = task.input.prepare(trained.test.x[np.arange(len(trained.test))])
    found = {}
    for name in FILES:
        path = source.workshop / FORMATS[name].file
        attempt(path.name, functools.partial(export, source, name, path))
        with open_model(path) as model:
            guessed = model.predict(x).argmax(axis=1)
        found[name] = float((guessed == trained.test.y).mean())
    return found


def measure(task: str, trained: Trained, case: Case) -> list[Row]:
    """Returns a row per file for one calibration."""
    clients, found = 0, []
    for draw in range(DRAWS):
        source = centrally(trained, draw)
        if case.keys is not None:
            told = told_by_clients(trained, CalibrateStage(kind="calibrate", **case.keys), draw)
            clients = told["clients_answered"]
            ranges = {name: Range(*ends) for name, ends in told["ranges"].items()}
            source = replace(trained.source, ranges=ranges)
        found.append(accuracies(trained, source))
    return [
        Row(
            task,
            case.name,
            name,
            clients,
            DRAWS,
            float(np.mean([own[name] for own in found])),
            min(own[name] for own in found),
        )
        for name in FILES
    ]


def against_central(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with the points that each mean accuracy is above central calibration's."""
    central = {(row.task, row.file): row.accuracy for row in rows if row.calibration == CENTRAL}
    return [
        replace(
            row,
            points_against_central=round(100.0 * (row.accuracy - central[row.task, row.file]), 3),
        )
        for row in rows
    ]


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as Markdown."""
    body = [
        (
            row.task,
            row.calibration,
            row.file,
            f"{row.accuracy:.4f}",
            f"{row.worst:.4f}",
            f"{row.points_against_central:+.2f}",
        )
        for row in rows
    ]
    head = ("task", "ranges", "file", "accuracy", "worst draw", "points against central")
    return markdown(head, body)


def main(
    runs: Annotated[Path, typer.Option(help="Where trained runs lie, or are put.")] = Path("runs"),
    task: Annotated[list[str] | None, typer.Option(help="May be repeated; all if absent.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Default: benchmarks/results/<date>-calibration.json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Quantize trained models with ranges from several sources; print the accuracies.

    Example: python -m benchmarks.calibration --task watch-cnn
    """
    torch.set_num_threads(1)
    path, rows = result_path(out, "calibration"), []
    with told_in_a_line():
        for name in task or list(RUNS):
            folder = runs / name
            train(read_config(EXAMPLES / f"{name}.toml", RUNS[name]), folder)
            with opened(folder) as trained:
                for case in CASES:
                    rows += measure(name, trained, case)
                    print(f"{name}: {case.name}", file=sys.stderr, flush=True)
    rows = against_central(rows)
    told = [asdict(row) for row in rows]
    write_json(path, {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "rows": told})
    print(json.dumps(told, indent=2) if as_json else f"{table(rows)}\n\n{path}")


if __name__ == "__main__":
    typer.run(main)
