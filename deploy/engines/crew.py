"""A crew: Ray actors that pull jobs. Results come in the order of the jobs, the dead are replaced.

    with Crew(MakeWorker(Trainer, (config,)), size=2) as crew:
        for outcome in crew.map(Job((block,)) for block in blocks):
            ...                       # what `Trainer(config).work(block)` returned, or `Lost`

A crew knows nothing of what its workers do. Its actors live until `close`, over any number of maps.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from deploy.engines.seat import WildflowerWorker, Worker
from shared_models.errors import EngineError, WildflowerError, one_line

# A job that has killed this many actors would kill any; so would a start.
_DEATHS = 3
_START_S = 120.0


class Gone(Exception):
    """What a worker left for us died with it; its job has to be done again."""


@dataclass(frozen=True)
class MakeWorker:
    """How a worker is made, inside its actor: `make(*args)`; `options` are those of a Ray actor.

    `make` is best a class in a module that the actor can import; `args` travel once an actor.
    """

    make: Callable[..., Worker]
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One call of a worker's `work(*args, *shared)`, cut off after `deadline_s` seconds, if given.

    `shared` are Ray object references; they arrive as the objects, whose numpy arrays are not
    copied. They travel once an actor, as long as one job after another has the same.
    """

    args: tuple[Any, ...]
    deadline_s: float = math.inf
    shared: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Lost:
    """A job that has no result, and why."""

    reason: str


@dataclass
class _Task:
    """A job on its way; `deaths` are the actors that it took with it."""

    job: Job
    place: int
    deaths: int = 0


class _Batch:
    """The jobs of one map: what is to be done, what came early."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.outcomes: dict[int, Any] = {}
        self.again: deque[_Task] = deque()
        self.taken = 0
        self.exhausted = False
        self.abandoned = False
        self._jobs = iter(jobs)

    def next(self, limit: int) -> _Task | None:
        """Returns the next task with a place below `limit`; those to be done again come first."""
        if self.again:
            return self.again.popleft()
        if self.taken >= limit or self.exhausted:
            return None
        job = next(self._jobs, None)
        if job is None:
            self.exhausted = True
            return None
        self.taken += 1
        return _Task(job, self.taken - 1)


@dataclass
class _Actor:
    """A Ray actor, and what it keeps of the values that jobs share."""

    handle: Any
    number: int = 0
    shared: tuple[Any, ...] = ()

    def start(self, job: Job) -> Any:
        """Starts a job; what it shares with others goes along only if it is new here."""
        if not job.shared:
            return self.handle.work.remote(0, 0, *job.args)
        if job.shared == self.shared:
            return self.handle.work.remote(self.number, 0, *job.args)
        self.number, self.shared = self.number + 1, job.shared
        return self.handle.work.remote(self.number, len(job.shared), *job.shared, *job.args)

    def end(self) -> None:
        ray.kill(self.handle, no_restart=True)


@dataclass
class _Duty:
    """What an actor is at: a task of a batch, or at first its own beginning."""

    actor: _Actor
    until: float
    task: _Task | None = None
    batch: _Batch | None = None


class Crew:
    """`size` actors. At most `2 * size` jobs of a map are under way or waiting for their turn.

    `receive` is called with each result at once when it comes, and returns what `map` yields; it
    may raise `Gone`.
    """

    def __init__(
        self, worker: MakeWorker, size: int, receive: Callable[[Any], Any] | None = None
    ) -> None:
        fixed = {"max_restarts": 0, "max_task_retries": 0, "enable_task_events": False}
        options = {"num_cpus": 1, **worker.options, **fixed}
        self._actor_class = ray.remote(WildflowerWorker).options(**options)
        self._worker = worker
        self._receive = receive or (lambda result: result)
        self._size = size
        self._free: deque[_Actor] = deque()
        self._duties: dict[Any, _Duty] = {}
        self._stillborn = 0
        for _ in range(size):
            self._hire()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """How many actors there are."""
        return self._size

    def map(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """Yields each job's result or `Lost`, in the order of the jobs.

        Lazy: a job is taken from `jobs` only when an actor is free for it. A job whose actor died
        is done again. Raises `EngineError` when no worker can be had.
        """
        batch = _Batch(jobs)
        try:
            for place in itertools.count():
                limit = place + 2 * self._size
                self._hand_out(batch, limit)
                while place not in batch.outcomes:
                    if batch.exhausted and place >= batch.taken:
                        return
                    self._wait()
                    self._hand_out(batch, limit)
                yield batch.outcomes.pop(place)
        finally:
            batch.abandoned = True

    def wait(self) -> None:
        """Returns when every actor is free; raises `EngineError` when one cannot start."""
        while self._duties:
            self._wait()

    def close(self) -> None:
        """Ends the actors."""
        for actor in [*self._free, *(duty.actor for duty in self._duties.values())]:
            actor.end()
        self._free.clear()
        self._duties.clear()

    def _hire(self) -> None:
        actor = _Actor(self._actor_class.remote())
        ref = actor.handle.begin.remote(self._worker.make, self._worker.args)
        self._duties[ref] = _Duty(actor, time.monotonic() + _START_S)

    def _hand_out(self, batch: _Batch, limit: int) -> None:
        while self._free and (task := batch.next(limit)) is not None:
            actor = self._free.popleft()
            until = time.monotonic() + task.job.deadline_s
            self._duties[actor.start(task.job)] = _Duty(actor, until, task, batch)

    def _wait(self) -> None:
        """Waits until an actor is done with something, in whatever way."""
        first = min(duty.until for duty in self._duties.values())
        patience = None if first == math.inf else max(0.0, first - time.monotonic())
        done, _ = ray.wait(list(self._duties), num_returns=1, timeout=patience)
        for ref in done:
            self._finish(ref, self._duties.pop(ref))
        if not done:
            self._cut_off()

    def _finish(self, ref: Any, duty: _Duty) -> None:
        try:
            outcome = ray.get(ref) if duty.task is None else self._receive(ray.get(ref))
        except RayTaskError as error:
            outcome = Lost(_told(error))
            if duty.task is None:
                raise EngineError(f"a worker cannot start: {outcome.reason}") from None
        except (RayError, Gone) as error:
            self._replace(duty, _told(error))
            return
        self._free.append(duty.actor)
        if duty.task is None:
            self._stillborn = 0
        elif duty.batch is not None:
            duty.batch.outcomes[duty.task.place] = outcome

    def _replace(self, duty: _Duty, reason: str) -> None:
        """Puts another actor in the place of a dead one, and has its job done again."""
        duty.actor.end()
        self._hire()
        if duty.task is None or duty.batch is None:
            self._stillborn += 1
            if self._stillborn >= _DEATHS:
                raise EngineError(f"workers die as they start: {reason}")
            return
        duty.task.deaths += 1
        if duty.task.deaths >= _DEATHS:
            told = f"{_DEATHS} workers died of it: {reason}"
            duty.batch.outcomes[duty.task.place] = Lost(told)
        elif not duty.batch.abandoned:
            duty.batch.again.append(duty.task)

    def _cut_off(self) -> None:
        """Ends the actors that are past their deadline; their jobs are lost."""
        now = time.monotonic()
        for ref, duty in list(self._duties.items()):
            if duty.until > now:
                continue
            if duty.task is None or duty.batch is None:
                raise EngineError(
                    f"no worker started within {_START_S:.0f} s: "
                    f"{self._size} are wanted, free are {_free_cpus():.0f} CPUs"
                )
            del self._duties[ref]
            duty.actor.end()
            self._hire()
            told = f"cut off after {duty.task.job.deadline_s:g} s"
            duty.batch.outcomes[duty.task.place] = Lost(told)


def _told(error: RayError | Gone) -> str:
    """Returns in one line what a worker raised, or what became of its process."""
    if isinstance(error, (ActorDiedError, Gone)):
        return "its process died"  # Ray's own words are a paragraph of possible causes
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, WildflowerError):
        return str(cause)
    if isinstance(cause, BaseException):
        return one_line(f"{type(cause).__name__}: {cause}")
    return one_line(str(error).strip().splitlines()[-1])


def _free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]
