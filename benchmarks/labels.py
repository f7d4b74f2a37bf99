"""What unlabelled data is worth where few labels are: `python -m benchmarks.labels`.

Each cell is a whole federated run: a supervised stage alone (`scratch`), or a `pretrain` stage on
all examples of all clients and then the same supervised stage. Who has labels is drawn by the seed,
the same for both. What is pretrained does not depend on that: runs that differ in it alone share
the stage, by its file, and end with the bytes that they would have ended with.

A file holds what is done, so that the benchmark goes on where it was stopped; its accuracies depend
neither on how many run at a time nor on what else the machine does.

Numbers are chosen with `--validate`: on training examples that are held out, of other people where
the data knows people, with other seeds than those that are told.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from matplotlib.figure import Figure

from benchmarks.command import RESULTS, told_in_a_line
from benchmarks.held_out import hold_out
from benchmarks.learning import Curve, learn_all, open_kept
from benchmarks.plot import INK, save
from benchmarks.text import markdown
from shared_models.config import Config, parse_config
from shared_models.errors import InputError, did_you_mean
from shared_models.tasks import load_task

FRACTIONS = (0.01, 0.05, 0.1)
SCRATCH = "scratch"
VALIDATION_SEED = 100  # the first of them
HELD_OUT = {"mnist": 6000, "fashion-mnist": 6000, "watch": 900, "tiny": 300}
COLOURS = ("#d9822b", "#3f8fce", "#8f6fc4", "#5fa052", "#c0504d")


@dataclass(frozen=True)
class Setting:
    """A data set, how it is learnt with labels and without, and the objectives that are tried.

    `rates`: those of the supervised stage, by what it begins with, where they are not one.
    """

    task: str
    data: Mapping[str, Any]
    supervised: Mapping[str, Any]
    pretrain: Mapping[str, Any]
    objectives: tuple[str, ...]
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run: `way` is an objective, or `scratch`; `rate`: another of the supervised stage."""

    dataset: str
    fraction: float
    way: str
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """What the results file calls it."""
        told = f"{self.dataset} {self.fraction:g} {self.way} {self.seed}"
        return told if self.rate is None else f"{told} {self.rate:g}"

    @property
    def pretraining(self) -> str:
        """What it shares with the cells that are pretrained alike."""
        return f"{self.dataset} {self.way} {self.seed}"


_HUNDRED = {"partition": "iid", "clients": 100}
_FEW_LABELS = {
    "rounds": 60, "clients_per_round": 100, "local_epochs": 5, "batch_size": 10,
    "local_learning_rate": 0.3, "local_clip_norm": 1.0,
}  # fmt: skip
_ADAM = {"local_optimizer": "adam", "local_learning_rate": 0.001}
_IMAGES = {
    "rounds": 120, "clients_per_round": 10, "batch_size": 64, "server_optimizer": "momentum",
    **_ADAM,
}  # fmt: skip
SETTINGS: Mapping[str, Setting] = {
    "mnist": Setting(
        "mnist-cnn", _HUNDRED, _FEW_LABELS, _IMAGES, ("simclr",), {SCRATCH: 2.0, "simclr": 0.3}
    ),
    "fashion-mnist": Setting(
        "fashion-cnn", _HUNDRED, _FEW_LABELS, _IMAGES, ("simclr",), {SCRATCH: 1.0, "simclr": 1.0}
    ),
    "watch": Setting(
        "watch-cnn",
        {"partition": "natural"},
        {**_FEW_LABELS, "clients_per_round": 8, "local_learning_rate": 0.1},
        {"rounds": 120, "clients_per_round": 8, "batch_size": 32, **_ADAM},
        ("simsiam",),
    ),
}
TINY = Setting(
    "digits-cnn",
    {"partition": "iid", "clients": 6},
    {**_FEW_LABELS, "rounds": 2, "clients_per_round": 6},
    {"rounds": 1, "clients_per_round": 3, "batch_size": 64, **_ADAM},
    ("denoising_autoencoder",),
)  # seconds: for the tests and a first try
_ALL = {**SETTINGS, "tiny": TINY}


def config_of(cell: Cell, data: Path | None = None, encoder: Path | None = None) -> Config:
    """Returns the run of a cell, on other `data` and with a pretrained `encoder` if there are any.

    The server measures only what a stage ends with.
    """
    own = _ALL[cell.dataset]
    stages: list[dict[str, Any]] = [{"name": "supervised", "kind": "train", **own.supervised}]
    rate = own.rates.get(cell.way) if cell.rate is None else cell.rate
    if rate is not None:
        stages[0]["local_learning_rate"] = rate
    if encoder is not None:
        stages[0]["resets"] = ["head."]
    elif cell.way != SCRATCH:
        stages.insert(0, {"kind": "pretrain", "objective": cell.way, **own.pretrain})
    named = {"name": str(data)} if data else {}
    values = {
        "task": own.task,
        **({"init": str(encoder)} if encoder else {}),
        "seed": cell.seed,
        "data": {**own.data, **named, "labelled_fraction": cell.fraction},
        "evaluate": {"every": 1_000_000},
        "plan": {"trainer": "loop", "block_size": 10},
        "stages": stages,
    }
    return parse_config(tomli_w.dumps(values), cell.name)


def cells_of(
    datasets: Sequence[str], fractions: Sequence[float], seeds: range, objectives: Sequence[str]
) -> Iterator[Cell]:
    """Yields the cells that are asked for, those first that say most."""
    for seed in seeds:
        for fraction in fractions:
            for dataset in datasets:
                for way in (SCRATCH, *(objectives or _ALL[dataset].objectives)):
                    yield Cell(dataset, fraction, way, seed)


@dataclass(frozen=True)
class Row:
    """The accuracies of one way to learn from a share of the labels, by seed.

    `rate`: of the supervised stage, empty where it is that of the setting.
    """

    dataset: str
    fraction: float
    way: str
    rate: str
    accuracies: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.accuracies.values())

    @property
    def spread(self) -> float:
        """The standard deviation over seeds; of one there is none, NaN."""
        return statistics.stdev(self.accuracies.values()) if len(self.accuracies) > 1 else math.nan

    def at(self, seeds: Collection[int]) -> Row:
        """Returns the row of these seeds alone."""
        kept = {seed: own for seed, own in self.accuracies.items() if seed in seeds}
        return replace(self, accuracies=kept)

    def __str__(self) -> str:
        told = f"{100 * self.mean:.1f}"
        return told if math.isnan(self.spread) else f"{told} ± {100 * self.spread:.1f}"


def rows_of(curves: Mapping[str, Curve]) -> list[Row]:
    """Returns what all runs of a file say, by data set, share and way."""
    found: dict[tuple[str, float, str, str], dict[int, float]] = {}
    for name, curve in curves.items():
        dataset, fraction, way, seed, *rate = name.split(" ")
        key = dataset, float(fraction), way, "".join(rate)
        found.setdefault(key, {})[int(seed)] = curve.at_end(1)
    rows = [Row(*key, own) for key, own in found.items()]
    return sorted(rows, key=lambda row: (row.dataset, row.fraction, row.way != SCRATCH, row.way))


def table(rows: Sequence[Row]) -> str:
    """Returns a table in Markdown: accuracy in per cent, mean and standard deviation over seeds.

    Only seeds with which both ways were run are compared.
    """
    scratch = {(row.dataset, row.fraction): row for row in rows if row.way == SCRATCH}
    head = ("data", "labels", "pretraining", "from scratch", "pretrained", "gain", "seeds")
    body = []
    for row in rows:
        base = scratch.get((row.dataset, row.fraction))
        both = row.accuracies.keys() & base.accuracies.keys() if base else ()
        if row.way == SCRATCH or base is None or not both:
            continue
        one, other = base.at(both), row.at(both)
        gain, share = f"{100 * (other.mean - one.mean):+.1f}", f"{row.fraction:.0%}"
        body.append((row.dataset, share, row.way, f"{one}", f"{other}", gain, f"{len(both)}"))
    return markdown(head, body)


def choices(rows: Sequence[Row]) -> str:
    """Returns a table in Markdown of what was tried to choose by."""
    head = ("data", "labels", "pretraining", "rate", "accuracy", "seeds")
    body = [
        (row.dataset, f"{row.fraction:.0%}", row.way, row.rate, f"{row}", f"{len(row.accuracies)}")
        for row in rows
    ]
    return markdown(head, body)


def draw(rows: Sequence[Row]) -> Figure:
    """Returns the figure: accuracy by the share of labels, an axis for each data set."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    figure = Figure(figsize=(3.2 * len(datasets), 2.8), layout="constrained")
    figure.patch.set_alpha(0)
    for axes, dataset in zip(
        figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True
    ):
        own = [row for row in rows if row.dataset == dataset]
        ways = list(dict.fromkeys(row.way for row in own))
        for way, colour in zip(ways, (INK, *COLOURS), strict=False):
            line = [row for row in own if row.way == way]
            axes.errorbar(
                [100 * row.fraction for row in line],
                [100 * row.mean for row in line],
                [100 * row.spread for row in line],
                label=way, color=colour, marker="o", markersize=4, capsize=3,
            )  # fmt: skip
        shares = sorted({100 * row.fraction for row in rows})
        axes.set_xlim(0, 1.1 * shares[-1])
        axes.set_xticks(shares)
        axes.set_title(dataset, fontsize=9, color=INK)
        axes.set_xlabel("% of examples with a label", fontsize=8, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
        axes.patch.set_alpha(0)
        axes.spines[:].set_color(INK)
        axes.legend(fontsize=7, labelcolor=INK, frameon=False)
    figure.supylabel("accuracy, %", fontsize=8, color=INK)
    return figure


def main(
    dataset: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    fraction: Annotated[list[float] | None, typer.Option(help="Only these shares.")] = None,
    objective: Annotated[list[str] | None, typer.Option(help="Only these objectives.")] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Other rates of the supervised stage.")
    ] = None,
    validate: Annotated[bool, typer.Option(help="Measure on held-out training examples.")] = False,
    seeds: Annotated[int, typer.Option(min=0, help="Runs of each; 0: tell what is kept.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    out: Annotated[Path | None, typer.Option(help="What is done is kept here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="An SVG to draw.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Compare training from scratch with pretraining and fine-tuning, by the share of labels.

    Example: python -m benchmarks.labels --dataset watch --fraction 0.01 --seeds 1
    """
    with told_in_a_line():
        datasets = dataset or list(SETTINGS)
        if unknown := [name for name in datasets if name not in _ALL]:
            near = did_you_mean(unknown[0], _ALL)
            raise InputError(f"--dataset {unknown[0]!r} does not exist; {near}")
        first = VALIDATION_SEED if validate else 0
        cells = cells_of(
            datasets, fraction or FRACTIONS, range(first, first + seeds), objective or ()
        )
        tried = [replace(cell, rate=own) for cell in cells for own in rate or (None,)]
        path = out or RESULTS / ("labels-validation.json" if validate else "labels.json")
        curves = learnt(path, tried, processes, validate=validate)
    rows = rows_of(curves)
    if plot is not None:
        save(draw(rows), plot, "accuracy by the share of examples that have labels")
    told = [{**asdict(row), "mean": row.mean, "spread": _or_none(row.spread)} for row in rows]
    text = choices(rows) if validate else table(rows)
    typer.echo(json.dumps(told, indent=2) if as_json else text)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def learnt(
    path: Path, cells: Sequence[Cell], processes: int, *, validate: bool
) -> Mapping[str, Curve]:
    """Returns what a results file has, with these cells, on held-out examples if asked.

    Of cells that are pretrained alike one keeps its encoder, the others begin with it.
    """
    kept = open_kept(path, {name: asdict(own) for name, own in SETTINGS.items()})
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        data: dict[str, Path] = {}
        for name in {cell.dataset for cell in cells} if validate else ():
            data[name] = Path(folder) / f"{name}.npz"
            hold_out(load_task(_ALL[name].task).dataset, data[name], HELD_OUT[name])
        missing = [cell for cell in cells if cell.name not in kept.curves]
        first = {cell.pretraining: cell for cell in reversed(missing) if cell.way != SCRATCH}
        files = {own: Path(folder) / f"{own}.safetensors" for own in first}
        at_first = [cell for cell in missing if cell.way == SCRATCH or cell in first.values()]
        for turn in (at_first, missing):
            wanted = {
                cell.name: config_of(cell, data.get(cell.dataset), _if_there(files, cell))
                for cell in turn
            }
            keep = {cell.name: files[cell.pretraining] for cell in first.values()}
            kept = learn_all(wanted, kept, processes, _tell, keep)
    return kept.curves


def _if_there(files: Mapping[str, Path], cell: Cell) -> Path | None:
    """Returns the file of what a cell begins with, unless that has still to be made."""
    path = files.get(cell.pretraining)
    return path if path and path.exists() else None


def _tell(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    typer.run(main)
