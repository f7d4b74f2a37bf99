"""A run's events as changes of metrics: pure functions, for simulations and fleets alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from deploy.events import ArtefactMeasured, Event, ExportStarted
from deploy.metrics import catalog
from deploy.metrics.series import Change
from server.event_log import Ended
from server.events import BlockFinished, Notice, RoundFinished, StageStarted, Waiting
from server.records import RoundRecord


@dataclass(frozen=True)
class Progress:
    """Whom a stage waits for: how many of the clients `asked` in `round` have not come back."""

    stage: str | None = None
    rounds: int = 0
    asked: int = 0
    round: int = 0
    waiting: int = 0


def progressed(before: Progress, event: Event | Ended) -> Progress:
    """Returns the progress after an event.

    A round may be told to be over while the next one trains, the last one of a stage when the
    next stage has begun.
    """
    match event:
        case StageStarted():
            asked = event.clients_per_round
            return Progress(event.stage, event.rounds, asked, event.done + 1, asked)
        case BlockFinished() if event.stage == before.stage and event.round >= before.round:
            left = before.waiting if event.round == before.round else before.asked
            return replace(before, round=event.round, waiting=max(left - event.clients, 0))
        case RoundFinished(record) if (record.stage, record.round) == (before.stage, before.round):
            follows = record.round < before.rounds
            return replace(before, round=before.round + 1, waiting=before.asked * follows)
        case Ended() | ExportStarted():
            return replace(before, waiting=0)
        case _:
            return before


def changes(run: str, event: Event | Ended) -> Iterator[Change]:
    """Yields what an event changes, apart from the queue, which is `Progress`'s."""
    match event:
        case StageStarted():
            stage = (run, event.stage)
            yield Change(catalog.STAGE_ROUNDS, stage, event.rounds)
            yield Change(catalog.ROUND, stage, event.done)
            yield Change(catalog.STAGE_CLIENTS, stage, event.clients)
            yield Change(catalog.WAITING, (run,), 0)
            yield Change(catalog.RUN_FAILED, (run,), 0)
        case BlockFinished():
            yield Change(catalog.BLOCKS, (run, event.stage), 1)
        case RoundFinished(record):
            yield from _of_round(run, record)
        case Waiting():
            yield Change(catalog.WAITING, (run,), max(event.wanted - event.clients, 0))
        case Notice():
            yield Change(catalog.NOTICES, (run,), 1)
        case Ended():
            yield Change(catalog.RUN_FAILED, (run,), event.status == "failed")
        case ArtefactMeasured(artefact):
            yield Change(catalog.ARTEFACT_BYTES, (run, artefact.file), artefact.size_bytes)
            labels = (run, artefact.file, artefact.parity.metric)
            yield Change(catalog.ARTEFACT_SCORE, labels, artefact.parity.score)
        case _:
            return


def _of_round(run: str, record: RoundRecord) -> Iterator[Change]:
    stage = (run, record.stage)
    yield Change(catalog.ROUNDS, stage, 1)
    yield Change(catalog.ATTEMPTS, stage, record.attempts)
    yield Change(catalog.ROUND, stage, record.round)
    yield Change(catalog.LAST_ROUND, stage, record.time)
    yield Change(catalog.MEMORY, (run,), record.rss_mb * 2**20)
    yield Change(catalog.ROUND_SECONDS, stage, record.seconds.total)
    for outcome, count in outcomes(record).items():
        yield Change(catalog.CLIENTS, (*stage, outcome), count)
    for phase, seconds in phases(record).items():
        yield Change(catalog.PHASE_SECONDS, (*stage, phase), seconds)
    yield Change(catalog.BYTES, (*stage, "down"), record.bytes_down)
    yield Change(catalog.BYTES, (*stage, "up"), record.bytes_up)
    if record.train_loss is not None:
        yield Change(catalog.TRAIN_LOSS, stage, record.train_loss)
    for source, told in (("server", record.eval), ("clients", record.clients_eval)):
        for metric, value in (told or {}).items():
            yield Change(catalog.EVALUATION, (*stage, source, metric), value)


def outcomes(record: RoundRecord) -> Mapping[str, int]:
    """Returns how many clients of a round had which outcome; each of them has one."""
    refused = Counter(failure.status for failure in record.failures)["refused"]
    return {
        "aggregated": record.clients_aggregated,
        "failed": record.clients_failed - refused,
        "refused": refused,
        "late": record.clients_late,
        "discarded": record.clients_discarded,
    }


def phases(record: RoundRecord) -> Mapping[str, float]:
    """Returns the seconds of a round's phases, in their order."""
    seconds = record.seconds
    return {
        "train": seconds.train,
        "aggregate": seconds.aggregate,
        "evaluate": seconds.evaluate,
        "checkpoint": seconds.checkpoint or 0.0,
    }
