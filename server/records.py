"""What happened in a round: one line of `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

OUTCOMES = ("refused", "failed", "late", "tolerated", "discarded")
"""What may become of a client that suffers an injected fault."""


@dataclass(frozen=True)
class Failure:
    """A client that did not count, and why."""

    client_id: int
    status: str
    reason: str


@dataclass(frozen=True)
class Injected:
    """A fault that was injected, and what became of its client: one of `OUTCOMES`."""

    client_id: int
    kind: str
    outcome: str


@dataclass(frozen=True)
class Best:
    """A stage's best round so far, by which metric, and that metric's value."""

    round: int
    metric: str
    value: float


@dataclass(frozen=True)
class Seconds:
    """Where a round's time went; `total` is what the next round had to wait for.

    `checkpoint` is beside `total`, not in it: it is written while the next round trains. So is the
    server's part of `evaluate`, except where a stage may stop early or clients train in the
    server's process. `checkpoint` is None in the copy inside the checkpoint itself.
    """

    total: float
    train: float
    aggregate: float
    evaluate: float
    checkpoint: float | None = None


@dataclass(frozen=True)
class RoundRecord:
    """The record of one round; `time` is seconds since the epoch, `rss_mb` the server process.

    `eval` is what the server measured, `clients_eval` what clients did on their own examples.
    Over all `attempts`, each of `clients_selected` is in one count: aggregated; `clients_failed`,
    that is failed or refused; `clients_late`, who missed the deadline, or enough others had
    answered; or `clients_discarded`, whose good update came in an attempt below the quorum.
    `failures` are those who failed, were refused or missed the deadline. `waited_s` is on the
    simulated clock, where there is one. A round is not `repeatable` when a clock on the wall cut
    somebody off, or workers died of a block. `best` is told where it decides when the stage ends,
    or with which weights.
    """

    stage: str
    round: int
    clients_selected: int
    clients_aggregated: int
    clients_failed: int
    failures: tuple[Failure, ...]
    train_loss: float | None
    eval: Mapping[str, float] | None
    seconds: Seconds
    bytes_down: int
    bytes_up: int
    rss_mb: float
    time: float
    clients_eval: Mapping[str, float] | None = None
    attempts: int = 1
    clients_late: int = 0
    clients_discarded: int = 0
    waited_s: float | None = None
    repeatable: bool = True
    injected: tuple[Injected, ...] = ()
    best: Best | None = None

    def to_json(self) -> str:
        """Returns the record as one line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)


def record_from_json(line: str) -> RoundRecord:
    """Reads what `to_json` wrote; raises ValueError, TypeError or KeyError on anything else."""
    values: dict[str, Any] = json.loads(line)
    values["failures"] = tuple(Failure(**failure) for failure in values["failures"])
    values["injected"] = tuple(Injected(**fault) for fault in values["injected"])
    values["seconds"] = Seconds(**values["seconds"])
    values["best"] = None if values["best"] is None else Best(**values["best"])
    return RoundRecord(**values)
