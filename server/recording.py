"""What is told of a round: who counted, who did not and why, and what went over the wire."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import psutil

from server.cohort import Cohort
from server.fold import Fold
from server.records import Failure, Injected, RoundRecord, Seconds
from server.state import ServerState
from shared_models.arrays import size_bytes
from shared_models.messages import BlockRequest, Reply, Send
from shared_models.partial import Row


@dataclass(frozen=True)
class Attempt:
    """A cohort and what came of it."""

    about: tuple[str, int, int]
    cohort: Cohort
    fold: Fold

    @property
    def asked(self) -> int:
        """How many clients were drawn."""
        return len(self.cohort.in_time) + len(self.cohort.late)

    @property
    def unneeded(self) -> tuple[int, ...]:
        """Those who were not waited for, since enough others had answered."""
        return self.cohort.in_time[len(self.fold.rows) :]

    def without_updates(self) -> Attempt:
        """Returns what is told of it, for one that missed its quorum: memory for the next."""
        return replace(self, fold=replace(self.fold, aggregate=None))


class Told:
    """A `send` that counts what it sends: states, and what is sent a second time, too."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.bytes_down = 0

    def send(self, requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        """Sends requests, and yields their replies."""
        return iter(self._send(self._counted(requests)))

    def _counted(self, requests: Iterable[BlockRequest]) -> Iterator[BlockRequest]:
        for request in requests:
            kept = [arrays for state in request.states.values() for arrays in state.values()]
            arrays = (request.params, *request.extras.values(), *kept)
            self.bytes_down += sum(map(size_bytes, arrays))
            yield request


def make_record(state: ServerState, tried: Sequence[Attempt], seconds: Seconds) -> RoundRecord:
    """Returns the record of a round after its attempts, of which the last one counts.

    Everybody who was selected is told once: aggregated, failed, late or discarded.
    """
    good = [row for row in tried[-1].fold.rows if row.status == "ok"]
    answered = Counter(row.status == "ok" for attempt in tried for row in attempt.fold.rows)
    return RoundRecord(
        stage=state.stage,
        round=state.round,
        clients_selected=sum(attempt.asked for attempt in tried),
        clients_aggregated=len(good),
        clients_failed=answered[False],
        failures=tuple(failure for attempt in tried for failure in _failures(attempt)),
        train_loss=_mean_metric(good, "loss"),
        eval=None,
        seconds=seconds,
        bytes_down=sum(attempt.fold.bytes_down for attempt in tried),
        bytes_up=sum(attempt.fold.bytes_up for attempt in tried),
        rss_mb=psutil.Process().memory_info().rss / 2**20,
        time=time.time(),
        attempts=len(tried),
        clients_late=sum(len(attempt.cohort.late) + len(attempt.unneeded) for attempt in tried),
        clients_discarded=answered[True] - len(good),
        waited_s=_waited_s(tried),
        repeatable=all(attempt.fold.repeatable for attempt in tried),
        injected=tuple(fault for a in tried for fault in _injected(a, counts=a is tried[-1])),
    )


def _failures(attempt: Attempt) -> Iterator[Failure]:
    for row in attempt.fold.rows:
        if row.status != "ok":
            # Who answers that it is late has answered.
            status = "failed" if row.status == "late" else row.status
            yield Failure(row.client_id, status, row.reason)
    for row in attempt.cohort.late:
        yield Failure(row.client_id, row.status, row.reason)


def _waited_s(tried: Sequence[Attempt]) -> float | None:
    """Returns the simulated seconds of all attempts, None where nobody was ever slow."""
    if not any(any(attempt.cohort.delays.values()) for attempt in tried):
        return None
    return sum(
        attempt.cohort.waited_s(
            len(attempt.fold.rows), enough=attempt.fold.usable >= attempt.cohort.target
        )
        for attempt in tried
    )


def _injected(attempt: Attempt, *, counts: bool) -> Iterator[Injected]:
    fates = {row.client_id: "tolerated" if counts else "discarded" for row in attempt.fold.rows}
    fates |= {failure.client_id: failure.status for failure in _failures(attempt)}
    fates |= dict.fromkeys(attempt.unneeded, "late")
    for client_id, fate in fates.items():
        if kind := attempt.cohort.injected.get(client_id):
            yield Injected(client_id, kind, fate)


def _mean_metric(rows: Sequence[Row], name: str) -> float | None:
    """Returns the mean over examples, or None where nobody reports it."""
    told = [(row.metrics[name], row.examples) for row in rows if name in row.metrics]
    total = sum(examples for _, examples in told)
    return sum(value * examples for value, examples in told) / total if total else None
