"""The values of metrics as they are now, by label; safe between threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from deploy.metrics.catalog import Metric

Samples: TypeAlias = Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class Change:
    """What an event does to a metric: a counter grows by `value`, a gauge becomes it."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


class Series:
    """Metrics that were told of, with a value for each combination of labels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._measured: dict[Metric, Callable[[], float]] = {}

    def apply(self, changes: Iterable[Change]) -> None:
        """Takes changes in; a scrape sees all of them or none."""
        with self._lock:
            for change in changes:
                values = self._values.setdefault(change.metric, {})
                before = values.get(change.labels, 0.0) if change.metric.kind == "counter" else 0.0
                values[change.labels] = before + change.value

    def replace(self, metric: Metric, samples: Samples) -> None:
        """Sets all of a metric: a label that is not in `samples` is gone."""
        with self._lock:
            self._values[metric] = dict(samples)

    def measure(self, metric: Metric, look: Callable[[], float]) -> None:
        """Has a metric without labels looked at whenever somebody asks."""
        with self._lock:
            self._measured[metric] = look

    def forget(self, run: str) -> None:
        """Drops what is about a run."""
        with self._lock:
            for metric in [own for own in self._values if "run" in own.labels]:
                place, values = metric.labels.index("run"), self._values[metric]
                kept = {own: value for own, value in values.items() if own[place] != run}
                self._values[metric] = kept

    def now(self) -> dict[Metric, Samples]:
        """Returns a copy of all values."""
        with self._lock:
            told: dict[Metric, Samples] = {m: dict(own) for m, own in self._values.items()}
            return told | {metric: {(): look()} for metric, look in self._measured.items()}
