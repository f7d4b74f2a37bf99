"""Where a run stands, folded from its events: what the terminal shows is drawn from this alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deploy.events import Event
from deploy.metrics.rounds import Progress, phases, progressed
from deploy.report.attendance import totals
from deploy.report.story import means
from server.events import RoundFinished, StageStarted
from server.records import Failure, RoundRecord

_MARKS = 5  # ends of rounds that the pace is taken from: the first ones are slower than the rest


@dataclass(frozen=True)
class Standing:
    """A stage that learns, so far; times are seconds on a clock that never goes back.

    `marks` are `(time, clients that came back)` at the ends of the newest rounds, `told` what was
    measured, round by round, `fates` what became of how many clients, `failure` the newest one with
    its round. `until` is when the stage ended.
    """

    stage: str
    rounds: int
    since: float
    heard: float
    progress: Progress
    marks: tuple[tuple[float, int], ...]
    done: int = 0
    told: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    fates: Mapping[str, int] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    failure: tuple[int, Failure] | None = None
    until: float | None = None

    @property
    def came(self) -> int:
        """How many clients came back, of `wanted`, as if every round before had all of them."""
        own = self.progress
        return min(own.round * own.asked - own.waiting, self.wanted)

    @property
    def wanted(self) -> int:
        """How many clients come back in all rounds together."""
        return self.rounds * self.progress.asked

    def clients_per_second(self) -> float | None:
        """Returns the pace of the newest rounds, None before there is one."""
        at, came = self.marks[0]
        passed, more = self.heard - at, self.came - came
        return more / passed if passed > 0 and more > 0 else None

    def left(self, now: float) -> float | None:
        """Returns the seconds that the rest will take at that pace, None where nobody can tell."""
        pace = self.clients_per_second()
        if pace is None or self.until is not None:
            return None
        return max(0.0, (self.wanted - self.came) / pace - (now - self.heard))


def after(stages: tuple[Standing, ...], event: Event, now: float) -> tuple[Standing, ...]:
    """Returns where the stages of a run stand after an event; the last of them goes on.

    A stage's last round may be told when the next stage has begun. One that begins again, as when a
    server has come back, takes the place of what it was.
    """
    match event:
        case StageStarted():
            others = tuple(own for own in stages if own.stage != event.stage)
            return (*ended(others, now), _begun(event, now))
        case RoundFinished(record):
            return tuple(
                _after_round(own, record, now) if own.stage == record.stage else own
                for own in stages
            )
        case _:
            return (*stages[:-1], *(_heard(own, event, now) for own in stages[-1:]))


def ended(stages: tuple[Standing, ...], now: float) -> tuple[Standing, ...]:
    """Returns stages of which none goes on."""
    return tuple(own if own.until is not None else replace(own, until=now) for own in stages)


def _begun(event: StageStarted, now: float) -> Standing:
    progress = progressed(Progress(), event)
    begun = Standing(event.stage, event.rounds, now, now, progress, (), event.done)
    return replace(begun, marks=((now, begun.came),))


def _heard(own: Standing, event: Event, now: float) -> Standing:
    progress = progressed(own.progress, event)
    return own if progress == own.progress else replace(own, progress=progress, heard=now)


def _after_round(own: Standing, record: RoundRecord, now: float) -> Standing:
    heard = _heard(own, RoundFinished(record), now)
    failure = (record.round, record.failures[-1]) if record.failures else own.failure
    return replace(
        heard,
        heard=now,
        done=record.round,
        marks=(*own.marks, (now, heard.came))[-_MARKS:],
        told=_longer(own.told, record),
        fates=Counter(own.fates) + Counter(totals([record])),
        phases=Counter(own.phases) + Counter(phases(record)),
        failure=failure,
        until=now if own.until is not None or record.round == own.rounds else None,
    )


def _longer(
    told: Mapping[str, tuple[float, ...]], record: RoundRecord
) -> dict[str, tuple[float, ...]]:
    """Returns what was measured with what a round adds: a metric's loss tells nothing beside."""
    measured = record.eval or means(record.clients_eval)
    found = {name: value for name, value in measured.items() if name != "loss"}
    if record.train_loss is not None:
        found["train loss"] = record.train_loss
    return {**told, **{name: (*told.get(name, ()), value) for name, value in found.items()}}
