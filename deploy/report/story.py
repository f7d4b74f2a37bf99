"""What a run folder tells, as values: all that a report says comes from here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from deploy.edge.artefact import Artefact
from deploy.report.partition import Skew
from server.best import smaller_is_better
from server.records import RoundRecord
from server.sample_records import Samples

Status: TypeAlias = Literal["done", "trained", "running", "failed", "unfinished"]


@dataclass(frozen=True)
class Stage:
    """A learning stage, with what is recorded of it so far; `first` is its place in all rounds."""

    name: str
    kind: str
    rounds: int
    settings: Mapping[str, Any]
    records: tuple[RoundRecord, ...]
    first: int

    def place(self, record: RoundRecord) -> int:
        """Returns the number of a round, counted over all stages."""
        return self.first + record.round


@dataclass(frozen=True)
class OnClients:
    """What clients measured after a round, each on its own examples: a place per client.

    `metrics` has a column for each, of those who could measure; `failed` are ids and reasons.
    """

    stage: str
    round: int
    client_ids: tuple[int, ...]
    examples: tuple[int, ...]
    metrics: Mapping[str, tuple[float, ...]]
    failed: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the manifest says of the model, as far as it does."""

    dataset: str = ""
    answer: str = ""
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    costs: tuple[str, ...] = ("loss",)
    parameters: int | None = None
    parts: Mapping[str, int] = field(default_factory=dict)
    input_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Totals:
    """What the summary says of the whole run, as far as it does."""

    total_s: float | None = None
    startup_s: float | None = None
    peak_rss_mb: float | None = None
    params: int | None = None
    clients: int | None = None


@dataclass(frozen=True)
class Story:
    """A run: what it was to be, what happened, what came of it.

    `notes` say what of the folder could not be read, `notices` what a fleet's server noted,
    `waiting` whom it waits for, `away` why this may be old. Without `skew`, `clients`, `samples`
    nothing of the kind was recorded.
    """

    name: str
    status: Status
    reason: str
    config: Mapping[str, Any]
    config_text: str
    manifest: Mapping[str, Any]
    model: Facts
    totals: Totals
    stages: tuple[Stage, ...]
    files: tuple[Artefact, ...] = ()
    clients: OnClients | None = None
    skew: Skew | None = None
    samples: Samples | None = None
    notes: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    waiting: str = ""
    away: str = ""

    @property
    def task(self) -> str:
        """The name of what is learnt."""
        return str(self.config.get("task", "?"))

    @property
    def records(self) -> tuple[RoundRecord, ...]:
        """The rounds of all stages, in order."""
        return tuple(record for stage in self.stages for record in stage.records)

    def placed(self) -> Iterator[tuple[int, RoundRecord]]:
        """Yields the rounds of all stages with their number over all of them."""
        for stage in self.stages:
            for record in stage.records:
                yield stage.place(record), record

    @property
    def metric(self) -> str:
        """What rounds are judged by: the task's first metric that somebody measured."""
        told = [
            name
            for record in self.records
            for name in (record.eval or means(record.clients_eval))
            if name != "loss"
        ]
        known = [name for name in self.model.metrics if name in told]
        return next(iter(known or told), "loss")

    def less_is_better(self, metric: str) -> bool:
        """Whether a smaller value of a metric is a better one."""
        return smaller_is_better(metric.removeprefix("robust_"), self.model.costs)

    @property
    def exports(self) -> bool:
        """Whether files are to be made."""
        return any(stage.get("kind") == "export" for stage in self.config.get("stages", ()))


def means(told: Mapping[str, float] | None) -> dict[str, float]:
    """Returns what clients measured without how it is spread: a mean has its percentiles beside it.

    >>> means({"clients": 8.0, "accuracy": 0.5, "accuracy_p50": 0.4})
    {'accuracy': 0.5}
    """
    found = told or {}
    return {name: value for name, value in found.items() if f"{name}_p50" in found}


def value_of(record: RoundRecord, metric: str) -> float | None:
    """Returns what a round's model is worth: on the server's data, else on the clients'."""
    told = record.eval if record.eval is not None else means(record.clients_eval)
    return told.get(metric)
