"""Wrist sensor recordings of shoulder exercises (Burns et al. 2018), cut into windows."""

from __future__ import annotations

import hashlib
import io

import numpy as np

from shared_models.datasets.archive import Archive
from shared_models.datasets.dataset import Dataset, Split
from shared_models.errors import DataError

WINDOW, HOP = 100, 50  # samples at 50 Hz: two seconds, half overlapping
TEST_SUBJECTS = (9, 10)
MEMBER = "seglearn/data/watch_dataset.npy"
MEMBER_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"


def read_watch(archive: Archive) -> Dataset:
    """Reads windows `(n, 100, 6)`; a client is a subject, subjects 9 and 10 are the test set."""
    content = archive.read(MEMBER)
    # The package stores a pickled dict, and a pickle can run anything: only this one is opened.
    if hashlib.sha256(content).hexdigest() != MEMBER_SHA256:
        raise DataError(f"{archive.path}: {MEMBER} is not the file that was pinned")
    recordings = np.load(io.BytesIO(content), allow_pickle=True).item()
    windows, labels, subjects = [], [], []
    for series, label, subject in zip(
        recordings["X"], recordings["y"], recordings["subject"], strict=True
    ):
        for start in range(0, len(series) - WINDOW + 1, HOP):
            windows.append(series[start : start + WINDOW])
            labels.append(label)
            subjects.append(subject)
    x, y = np.asarray(windows, np.float32), np.asarray(labels, np.int64)
    client_id = np.asarray(subjects, np.int64)
    test = np.isin(client_id, TEST_SUBJECTS)
    names = tuple(f"subject {number}" for number in range(1, 9))
    return Dataset(
        "watch",
        Split(x[~test], y[~test], client_id[~test]),
        Split(x[test], y[test], client_id[test]),
        names,
    )
