"""A device's own data: files or a function of its owner's, or a part of a known dataset.

Each hosted client's examples are read once, when the trainer starts. What the run's task takes is
known only with its config, so that a misfit is the answer to hello.
"""

from __future__ import annotations

import csv
import functools
import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.answers import OpenHost
from clients.host import Host, open_host
from clients.hosting import Hosting
from clients.partitions import partition
from shared_models.config import Config, Data
from shared_models.datasets.catalog import CATALOG
from shared_models.datasets.dataset import Dataset, Split
from shared_models.datasets.images import parse_idx
from shared_models.datasets.load import check_fit
from shared_models.datasets.npz import check_split, read_npz
from shared_models.errors import InputError, one_line
from shared_models.task import Task
from shared_models.tasks import load_task

_LABELS = ("label", "y")
_TABLES = (".csv", ".parquet")


def opened_by(hosting: Hosting) -> OpenHost:
    """Returns how a run's config opens this node; reads its own data first.

    Raises `InputError` that names the file and the client.
    """
    if hosting.data in CATALOG:
        return functools.partial(_open_part, hosting)
    return functools.partial(_open_own, hosting, read_own(hosting))


def read_own(hosting: Hosting) -> Split:
    """Returns the examples of all hosted clients, each with its client's id."""
    shared = "{client}" not in hosting.data and not _is_function(hosting.data)
    if shared:
        whole = _read(hosting.data)
        if whole.client_id is not None or len(hosting.client_ids) > 1:
            return _of_clients(whole, hosting)
        return Split(whole.x, whole.y, np.full(len(whole), hosting.client_ids[0]))
    splits = [_read_client(hosting.data, client_id) for client_id in hosting.client_ids]
    shapes = [np.asarray(split.x).shape[1:] for split in splits]
    for client_id, shape in zip(hosting.client_ids, shapes, strict=True):
        if shape != shapes[0]:
            ids = f"clients {hosting.client_ids[0]} and {client_id}"
            raise InputError(
                f"--data {hosting.data}: {ids} have examples of shapes {shapes[0]} and {shape}"
            )
    owners = np.repeat(hosting.client_ids, [len(split) for split in splits])
    x, y = [np.asarray(split.x) for split in splits], [split.y for split in splits]
    splits.clear()
    return Split(_joined(x), _joined(y), owners)


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Joins arrays and empties the list, so that a gateway's examples are in memory but once."""
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), np.result_type(*parts))
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


def _of_clients(split: Split, hosting: Hosting) -> Split:
    if split.client_id is None:
        raise InputError(
            f"--data {hosting.data}: one file for {len(hosting.client_ids)} clients; put "
            "{client} where its name has the client's id, or an array 'client_id' into the .npz"
        )
    own = np.isin(split.client_id, hosting.client_ids)
    if missing := sorted(set(hosting.client_ids) - set(split.client_id[own].tolist())):
        raise InputError(f"--data {hosting.data}: has no examples of client {missing[0]}")
    if own.all():
        return split
    return Split(np.asarray(split.x[own]), split.y[own], split.client_id[own])


def _read_client(data: str, client_id: int) -> Split:
    if _is_function(data):
        return _call(data, client_id)
    return _read(data.replace("{client}", str(client_id)))


def _is_function(data: str) -> bool:
    module, colon, name = data.partition(":")
    return bool(colon) and module.replace(".", "").isidentifier() and name.isidentifier()


def _call(data: str, client_id: int) -> Split:
    """Returns what a user's function says a client owns."""
    module, _, name = data.partition(":")
    where = f"--data {data}: client {client_id}"
    if "" not in sys.path:
        sys.path.insert(0, "")  # of the folder in which the client was started
    try:
        examples, labels = getattr(importlib.import_module(module), name)(client_id)
        x, y = np.asarray(examples), np.asarray(labels)
    except MemoryError:  # which may be there another time
        raise
    except Exception as error:  # it is somebody else's code
        raise InputError(f"{where}: {one_line(f'{type(error).__name__}: {error}')}") from None
    return check_split(where, x, y)


def _read(data: str) -> Split:
    try:
        return _read_files(data, Path(data).expanduser())
    except OSError as error:  # no permission, a folder in a file's place, a broken disk
        where = error.filename or f"--data {data}"
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from None


def _read_files(data: str, path: Path) -> Split:
    if path.suffix == ".npz":
        return read_npz(path).train
    if not path.exists():
        known = "an .npz, a .csv or .parquet file, a folder, module:function or a dataset's name"
        raise InputError(f"--data {data}: there is no such file or folder; expected {known}")
    if path.is_file():
        return _of_tables(path, [path])
    if idx := sorted(path.glob("*-ubyte")):
        return _of_idx(path, idx)
    return _of_tables(path, sorted(p for p in path.iterdir() if p.suffix in _TABLES))


def _of_idx(folder: Path, files: Sequence[Path]) -> Split:
    """Reads MNIST's naming: of several pairs the one that trains."""
    images = [path for path in files if "images" in path.name]
    labels = [path for path in files if "labels" in path.name]
    for kind, found in (("images", images), ("labels", labels)):
        if not found:
            raise InputError(f"{folder}: has no idx file of {kind}")
    first = next((path for path in images if path.name.startswith("train")), images[0])
    second = folder / first.name.replace("images", "labels").replace("idx3", "idx1")
    if second not in labels:
        raise InputError(f"{folder}: has no labels {second.name} for {first.name}")
    x, y = (parse_idx(path.read_bytes(), str(path)) for path in (first, second))
    return check_split(str(folder), x, y.astype(np.int64))


def _of_tables(path: Path, files: Sequence[Path]) -> Split:
    if not files:
        raise InputError(f"{path}: has no .csv, .parquet or idx files")
    tables = [_table(file) for file in files]
    if len({x.shape[1] for x, _ in tables}) > 1:
        raise InputError(f"{path}: its files differ in their number of columns")
    x, y = [own for own, _ in tables], [own for _, own in tables]
    tables.clear()
    return check_split(str(path), _joined(x), _joined(y))


def _table(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the features, in the order of their columns, and the labels of a table's rows."""
    columns = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    label = next((name for name in _LABELS if name in columns), None)
    if label is None:
        raise InputError(f"{path}: has no column 'label' or 'y' (found: {', '.join(columns)})")
    if len(columns) == 1:
        raise InputError(f"{path}: has no columns but {label!r}")
    try:
        y = np.asarray(columns.pop(label), np.float64)
        x = np.stack([np.asarray(column, np.float32) for column in columns.values()], axis=1)
    except ValueError as error:
        raise InputError(f"{path}: not a table of numbers: {one_line(str(error))}") from None
    if not (np.isfinite(y) & (y == np.floor(y))).all():
        raise InputError(f"{path}: column {label!r} must hold whole numbers")
    return x, y.astype(np.int64)


def _csv(path: Path) -> dict[str, Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a mark
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]  # empty lines are no rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of numbers: {one_line(str(error))}") from None
    if len(rows) < 2:
        raise InputError(f"{path}: has no rows below its header")
    header = rows[0][1]
    _require_once(path, header)
    for number, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}: line {number} has {len(row)} values, not {len(header)}")
    return dict(zip(header, zip(*(row for _, row in rows[1:]), strict=True), strict=True))


def _require_once(path: Path, header: Sequence[str]) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{path}: names column {twice[0]!r} twice")


def _parquet(path: Path) -> dict[str, Any]:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: to read Parquet, `pip install pyarrow`, or Wildflower with [parquet]"
        ) from None
    try:
        with pq.ParquetFile(path) as file:  # no more than the file: `a=1` in a path is no column
            table = file.read()
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise InputError(f"{path}: not a Parquet file: {one_line(str(error))}") from None
    _require_once(path, table.column_names)
    if not table.num_rows:
        raise InputError(f"{path}: has no rows")
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _open_part(hosting: Hosting, config: Config) -> Host:
    """Returns a node that has, of a known dataset, what the run's config deals to its clients."""
    data = config.data.model_copy(update={"name": hosting.data, "root": None})
    whole = open_host(config.model_copy(update={"data": data}))
    if strangers := sorted(set(hosting.client_ids) - set(whole.client_ids)):
        ids = f"{min(whole.client_ids)} to {max(whole.client_ids)}"
        raise InputError(
            f"client {strangers[0]}: --data {hosting.data} has clients {ids} as this run deals it"
        )
    return replace(whole, client_ids=hosting.client_ids, shared=False, keeping=hosting.keeping)


def _open_own(hosting: Hosting, own: Split, config: Config) -> Host:
    task = load_task(config.task)
    name = Path(hosting.data).name
    split = _windowed(name, own, task)
    _check_fit(task, name, split)
    dataset = Dataset(name, split, None)
    dealt = partition(split, Data(partition="natural"), config.seed)
    return Host(config, task, dataset, dealt, hosting.client_ids, False, hosting.keeping)


def _check_fit(task: Task, name: str, split: Split) -> None:
    """Raises `InputError` that names the first client whose examples the task does not take."""
    try:
        check_fit(task, name, split)
    except InputError:
        for client_id in np.unique(np.asarray(split.client_id)):
            own = split.client_id == client_id
            check_fit(task, f"{name}, client {client_id}", Split(split.x[own], split.y[own]))
        raise


def _windowed(name: str, split: Split, task: Task) -> Split:
    """Returns rows as windows, where the task takes several rows with one label as one example."""
    x, owner = np.asarray(split.x), split.client_id
    if (
        owner is None
        or x.ndim != 2
        or task.input.fits(x.shape[1:])
        or x.shape[1:] != task.input.shape[-1:]
    ):
        return split
    steps = int(np.prod(task.input.shape[:-1]))
    columns = [column.reshape(-1, steps) for column in (split.y, owner) if len(x) % steps == 0]
    if not columns or any((column != column[:, :1]).any() for column in columns):
        raise InputError(
            f"dataset {name!r}: {len(x)} rows cannot be cut into windows of {steps} rows "
            "with one label each"
        )
    y, client_id = (column[:, 0] for column in columns)
    return Split(x.reshape(-1, *task.input.shape), y, client_id)
