"""Who has which labels: `partition.json`, where this machine knows it. A fleet's labels stay there.

Counted when the first stage begins, so that a report can tell while the run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.events import Event, Observer
from server.events import Notice, StageStarted
from shared_models.errors import one_line
from shared_models.files import write_atomic

if TYPE_CHECKING:
    from clients.host import Host
    from shared_models.config import Config

PARTITION = "partition.json"
_MOST_CLIENTS = 100


@dataclass(frozen=True)
class Skew:
    """How many examples of each label some clients own: `counts` has a row per client.

    The clients are spread evenly over the ids of all `of`. `unit` is what was counted; sizes are
    `(smallest, median, largest)` over all clients, in examples.
    """

    partition: str
    of: int
    sizes: tuple[float, float, float]
    unit: str
    labels: tuple[str, ...]
    clients: tuple[int, ...]
    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        rows = {len(row) for row in self.counts}
        if len(self.counts) != len(self.clients) or rows - {len(self.labels)}:
            raise ValueError("not one count for each client and label")
        if self.names and len(self.names) != len(self.clients):
            raise ValueError("not one name for each client")


def counting_labels(config: Config, folder: Path, observe: Observer) -> Observer:
    """Returns an observer that also counts the labels when the first stage begins."""

    def told(event: Event) -> None:
        observe(event)
        if isinstance(event, StageStarted) and not (folder / PARTITION).exists():
            _keep(config, folder, observe)

    return told


def _keep(config: Config, folder: Path, observe: Observer) -> None:
    from clients.host import open_host

    try:
        write_atomic(folder / PARTITION, to_json(skew_of(open_host(config))))
    except Exception as error:  # of a picture no run may end
        observe(
            Notice(f"{PARTITION} cannot be made: {one_line(f'{type(error).__name__}: {error}')}")
        )


def to_json(skew: Skew) -> bytes:
    """Returns the content of the file."""
    from pydantic import TypeAdapter

    return TypeAdapter(Skew).dump_json(skew)


def skew_of(host: Host) -> Skew:
    """Returns who of a host's clients has which labels."""
    from clients.partitions import label_counts

    split, whole = host.dataset.train, host.partition
    places = np.unique(np.linspace(0, len(whole) - 1, _MOST_CLIENTS).astype(np.int64))
    ids = whole.client_ids[places].tolist()
    labels = _labels(host)
    sizes = whole.sizes()
    return Skew(
        host.config.data.partition,
        len(whole),
        (float(sizes.min()), float(np.median(sizes)), float(sizes.max())),
        "boxes" if split.holds_boxes else "pixels" if split.y.ndim > 1 else "examples",
        labels,
        tuple(ids),
        _names(host, places.tolist()),
        tuple(map(tuple, label_counts(split, whole, len(labels), ids).tolist())),
    )


def _labels(host: Host) -> tuple[str, ...]:
    if host.dataset.train.holds_boxes:
        return ("boxes",)
    known = host.task.labels
    highest = int(host.dataset.train.y.max())
    return (*known, *(str(place) for place in range(len(known), highest + 1)))


def _names(host: Host, places: list[int]) -> tuple[str, ...]:
    """Returns what the data calls its natural clients, where they are whole."""
    names, data = host.dataset.client_names, host.config.data
    cut = data.partition != "natural" or (data.parts_per_client or 1) > 1
    return () if cut or len(names) != len(host.partition) else tuple(names[k] for k in places)
