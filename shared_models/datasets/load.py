"""From a name or a path to a dataset in memory."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared_models.datasets.archive import open_archive
from shared_models.datasets.catalog import CATALOG, Entry
from shared_models.datasets.dataset import Dataset, Split
from shared_models.datasets.fetch import cache_folder, cached, check_hash, fetch
from shared_models.datasets.npz import read_npz
from shared_models.datasets.voc import read_voc
from shared_models.errors import DataError, InputError, WildflowerError, did_you_mean, one_line
from shared_models.labelled import UNLABELLED, has_label

if TYPE_CHECKING:
    from shared_models.task import Task


@functools.lru_cache(maxsize=2)
def load_dataset(name: str, root: str | None = None) -> Dataset:
    """Returns a dataset of the catalog, or a user's own `.npz`, fetching it if it is not cached.

    A name that ends in / is a user's own folder of images with boxes (Pascal VOC).
    `root` is a folder with files that the user already has: the registry's file, or what is in it.
    Raises `InputError` for an unknown name, `DataError` when it cannot be had or is damaged.
    """
    if name.endswith(".npz"):
        return read_npz(Path(name))
    if name.endswith("/"):
        return read_voc(Path(name))
    if name not in CATALOG:
        raise InputError(
            f"dataset {name!r} does not exist; {did_you_mean(name, CATALOG)}, "
            "or a path ending in .npz, or in / for a folder of images with boxes"
        )
    entry = CATALOG[name]
    if root is None:
        cache = cache_folder()
        return _read(entry, cached(entry, cache) or fetch(entry, cache))
    return _read_from(entry, Path(root))


def _read_from(entry: Entry, folder: Path) -> Dataset:
    """Reads the registry's file out of a user's folder, or the loose files that are in it."""
    if not folder.is_dir():
        raise InputError(f"data root {folder}: there is no such folder")
    file = folder / entry.source.filename
    if file.exists():
        check_hash(file, entry.source, advice="replace it")
        return _read(entry, file)
    try:
        dataset = _read(entry, folder)
    except DataError as error:
        raise InputError(f"data root {error}") from None
    if dataset.digest() != entry.content_sha256:
        raise InputError(f"data root {folder}: what is in it is not {entry.name}, or not all of it")
    return dataset


def _read(entry: Entry, path: Path) -> Dataset:
    module, function = entry.reader.split(":")
    reader = getattr(importlib.import_module(module), function)
    try:
        dataset: Dataset = reader(open_archive(path))
    except WildflowerError:
        raise
    except Exception as error:  # parsers of damaged files raise anything
        reason = one_line(f"{type(error).__name__}: {error}")
        raise DataError(f"{path}: cannot be read as {entry.name}: {reason}") from None
    return dataset


def load_task_data(task: Task, name: str | None = None, root: str | None = None) -> Dataset:
    """Returns the task's dataset, or another that fits it; `InputError` when it does not fit."""
    dataset = load_dataset(name or task.dataset, root)
    check_fit(task, dataset.name, dataset.train)
    if dataset.test is not None:
        check_fit(task, f"{dataset.name}, test split", dataset.test)
    return dataset


def check_fit(task: Task, name: str, split: Split) -> None:
    """Raises `InputError` unless the split's examples and labels are what the task takes."""
    shape = split.x[np.arange(1)].shape[1:]
    if not task.input.fits(shape):
        raise InputError(
            f"dataset {name!r} has examples of shape {shape}, "
            f"task {task.name!r} takes {task.input.shape}"
        )
    if split.y.shape[1:] != task.label_shape:
        raise InputError(
            f"dataset {name!r} has labels of shape {split.y.shape[1:]}, "
            f"task {task.name!r} takes {task.label_shape}"
        )
    if task.answer != "boxes" and task.labels and split.y.max() >= len(task.labels):
        raise InputError(
            f"dataset {name!r} has label {split.y.max()}, "
            f"task {task.name!r} has {len(task.labels)} labels, 0 to {len(task.labels) - 1}"
        )
    if not task.labels and not has_label(split.y).all():
        raise InputError(
            f"dataset {name!r} has {UNLABELLED} in y, for no label; "
            f"task {task.name!r} has no labels"
        )
    tokens = split.x if task.input.tokens and isinstance(split.x, np.ndarray) else None
    if tokens is not None and not (tokens.min() >= 0 and tokens.max() < task.input.tokens):
        raise InputError(
            f"dataset {name!r} has tokens from {tokens.min()} to {tokens.max()}, "
            f"task {task.name!r} takes 0 to {task.input.tokens - 1}"
        )
