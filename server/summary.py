"""What a script wants to know at the end of a run."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import psutil

from server.records import OUTCOMES, RoundRecord
from shared_models.config import Config, TrainStage


def summarize(config: Config, records: Sequence[RoundRecord], before: int) -> dict[str, Any]:
    """Returns the learning stages' summary; the first `before` records are another session's."""
    return {
        "status": "trained",
        "name": config.name,
        "task": config.task,
        "seed": config.seed,
        "stages": [
            summarize_stage(stage, [r for r in records if r.stage == stage.name])
            for stage in config.learning_stages
        ],
        "startup_s": _startup_s(records[before:]),
    }


def summarize_stage(stage: TrainStage, records: Sequence[RoundRecord]) -> dict[str, Any]:
    """Returns a stage's rounds, speed without the first round's warm-up, and evaluation.

    The evaluation is that of the weights that the stage ended with: the last round's or the best's.
    """
    last = records[-1]
    best = last.best
    kept = best.round if best is not None and stage.keep_best else last.round
    measured = next(record for record in records if record.round == kept)
    # A run of one round has only its warm-up to tell.
    timed = records[1:] or records
    seconds = sum(record.seconds.total for record in timed)
    return {
        "name": stage.name,
        "kind": stage.kind,
        "rounds": last.round,
        "stopped_early": last.round < stage.rounds,
        "best": None if best is None else asdict(best),
        "eval": measured.eval,
        "clients_eval": measured.clients_eval,
        "train_loss": last.train_loss,
        "clients_failed": sum(record.clients_failed for record in records),
        "clients_late": sum(record.clients_late for record in records),
        "clients_discarded": sum(record.clients_discarded for record in records),
        "faults": fault_table(records),
        "clients_per_second": sum(record.clients_aggregated for record in timed) / seconds,
        "seconds": sum(record.seconds.total for record in records),
    }


def fault_table(records: Sequence[RoundRecord]) -> dict[str, dict[str, int]]:
    """Returns, by the kind of the faults that were injected, how many and what became of them."""
    faults = [fault for record in records for fault in record.injected]
    table: dict[str, dict[str, int]] = {}
    for kind in sorted({fault.kind for fault in faults}):
        outcomes = Counter(fault.outcome for fault in faults if fault.kind == kind)
        told = {outcome: outcomes[outcome] for outcome in OUTCOMES}
        table[kind] = {"injected": outcomes.total(), **told}
    return table


def _startup_s(records: Sequence[RoundRecord]) -> float | None:
    """Returns the seconds from this process's start to its first round, None if it had none."""
    if not records:
        return None
    began = records[0].time - records[0].seconds.total
    return max(0.0, began - psutil.Process().create_time())


def own_peak_mb() -> float:
    """Returns the largest resident size that this process alone had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
