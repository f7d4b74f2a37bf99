"""Training examples to choose settings by, so that nothing is chosen by what it is tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared_models.datasets.dataset import Split
from shared_models.datasets.load import load_dataset
from shared_models.randomness import generator

TUNING_SEED = 0


def hold_out(dataset: str, path: Path, count: int) -> None:
    """Writes an `.npz` of the training examples alone: `count` of them are its test split.

    Where the data has natural clients these are held out whole, until there are that many examples:
    as people who are tested have never trained.
    """
    train = load_dataset(dataset).train
    held = _held_out(train, count)
    whose = {} if train.client_id is None else {"client_id": train.client_id[~held]}
    x = train.x[np.arange(len(train))]
    own = {"x": x[~held], "y": train.y[~held], "x_test": x[held], "y_test": train.y[held]}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **own, **whose)


def _held_out(train: Split, count: int) -> NDArray[np.bool_]:
    rng = generator(TUNING_SEED, "held out")
    if train.client_id is None:
        chosen = rng.permutation(len(train))[:count]
        return np.isin(np.arange(len(train)), chosen)
    ids, sizes = np.unique(train.client_id, return_counts=True)
    order = rng.permutation(len(ids))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1
    return np.isin(train.client_id, ids[order[:enough]])
