"""Humidity and temperature told by four motes (Suthaharan et al. 2010), cut into windows.

Two motes were indoors, two outdoors; hot steam made a mote of each kind tell what is unusual, after
more than two thousand readings. The others have told nothing unusual at all.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from shared_models.datasets.archive import Archive
from shared_models.datasets.dataset import Dataset, Split

WINDOW, HOP = 20, 5  # readings, one every five seconds
TRAIN_READINGS = 2000  # of each mote: all of them usual
MEMBER = "package/data/data.csv"
_MOTE, _FIRST, _LAST, _LABEL = 1, 3, 5, 5  # columns


def read_motes(archive: Archive) -> Dataset:
    """Reads windows `(n, 20, 2)`; a client is a mote, whose later readings are for the test.

    A window is unusual (1) when one of its readings is.
    """
    table = np.loadtxt(io.BytesIO(archive.read(MEMBER)), delimiter=",", skiprows=1)
    names = tuple(f"mote {number}" for number in np.unique(table[:, _MOTE].astype(int)))
    return Dataset("motes", _windows(table, test=False), _windows(table, test=True), names)


def _windows(table: NDArray[np.float64], *, test: bool) -> Split:
    x, y, owners = [], [], []
    for mote in np.unique(table[:, _MOTE]):
        own = table[table[:, _MOTE] == mote]
        own = own[TRAIN_READINGS:] if test else own[:TRAIN_READINGS]
        for start in range(0, len(own) - WINDOW + 1, HOP):
            window = own[start : start + WINDOW]
            x.append(window[:, _FIRST:_LAST])
            y.append(window[:, _LABEL].any())
            owners.append(mote)
    return Split(np.asarray(x, np.float32), np.asarray(y, np.int64), np.asarray(owners, np.int64))
