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
    """A job that has no result, and why.

    `timed_out` when its deadline passed, or workers died of it: another time it may be done.
    """

    reason: str
    timed_out: bool = False


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
        self.waiting: deque[_Task] = deque()
        self.taken = 0
        self.exhausted = False
        self.abandoned = False
        self._jobs = iter(jobs)

    def look_ahead(self, limit: int) -> None:
        """Takes jobs, up to a place."""
        while self.taken < limit and not self.exhausted:
            job = next(self._jobs, None)
            if job is None:
                self.exhausted = True
            else:
                self.waiting.append(_Task(job, self.taken))
                self.taken += 1

    def next(self, limit: int, left: int) -> _Task | None:
        """Returns the first task, if its place is below `limit` and more than `left` wait."""
        if len(self.waiting) > left and self.waiting[0].place < limit:
            return self.waiting.popleft()
        return None

    def settle(self, task: _Task, outcome: Any) -> None:
        """Notes what became of a task."""
        self.outcomes[task.place] = outcome

    def redo(self, tasks: Iterable[_Task]) -> None:
        """Puts tasks first in line again."""
        if not self.abandoned:
            self.waiting = deque(sorted([*tasks, *self.waiting], key=lambda task: task.place))


@dataclass
class _Duty:
    """What an actor is to do: a task of a batch, or at first its own beginning."""

    ref: Any
    task: _Task | None = None
    batch: _Batch | None = None
    until: float = math.inf


@dataclass(eq=False)
class _Actor:
    """A Ray actor, its duties in their order, and what it keeps of the values that jobs share."""

    handle: Any
    duties: deque[_Duty] = field(default_factory=deque)
    number: int = 0
    shared: tuple[Any, ...] = ()

    @property
    def has_begun(self) -> bool:
        return not self.duties or self.duties[0].task is not None

    def give(self, task: _Task, batch: _Batch) -> _Duty:
        """Hands over a task; what it shares with others goes along only if it is new here."""
        duty = _Duty(self._call(task.job), task, batch)
        self.duties.append(duty)
        if len(self.duties) == 1:
            self.watch()
        return duty

    def _call(self, job: Job) -> Any:
        if not job.shared:
            return self.handle.work.remote(0, 0, *job.args)
        if job.shared == self.shared:
            return self.handle.work.remote(self.number, 0, *job.args)
        self.number, self.shared = self.number + 1, job.shared
        return self.handle.work.remote(self.number, len(job.shared), *job.shared, *job.args)

    def watch(self) -> None:
        """Starts the clock of the duty that is first now."""
        if self.duties and self.duties[0].task is not None:
            self.duties[0].until = time.monotonic() + self.duties[0].task.job.deadline_s

    def end(self) -> None:
        ray.kill(self.handle, no_restart=True)


class Crew:
    """`size` actors, each at one job; the next may lie ready for it, as long as there are plenty.

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
        self._actors: list[_Actor] = []
        self._owner: dict[Any, _Actor] = {}
        self._stillborn = 0
        for _ in range(size):
            self._hire()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """How many actors there are."""
        return self._size

    def map(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """Yields each job's result or `Lost`, in the order of the jobs.

        Lazy: at most `2 * size` jobs are under way or wait for their turn to be yielded, and
        `size` more are looked at. A job whose actor died is done again. Raises `EngineError` when
        no worker can be had.
        """
        batch = _Batch(jobs)
        try:
            for place in itertools.count():
                if not self._reach(place, batch):
                    return
                yield batch.outcomes.pop(place)
        finally:
            batch.abandoned = True

    def wait(self) -> None:
        """Returns when every actor is free; raises `EngineError` when one cannot start."""
        while self._owner:
            self._wait()

    def close(self) -> None:
        """Ends the actors."""
        for actor in self._actors:
            actor.end()
        self._actors.clear()
        self._owner.clear()

    def _hire(self) -> None:
        actor = _Actor(self._actor_class.remote())
        ref = actor.handle.begin.remote(self._worker.make, self._worker.args)
        actor.duties.append(_Duty(ref, until=time.monotonic() + _START_S))
        self._actors.append(actor)
        self._owner[ref] = actor

    def _reach(self, place: int, batch: _Batch) -> bool:
        """Returns when the job of a place has its outcome; False where there is no such job."""
        while True:
            self._hand_out(batch, place + 2 * self._size)
            if place in batch.outcomes:
                return True
            if batch.exhausted and place >= batch.taken:
                return False
            self._wait()

    def _hand_out(self, batch: _Batch, limit: int) -> None:
        """Gives every free actor a task, then, while each could get another, every busy one.

        So an actor need not wait for us between two jobs, and yet the last jobs of a map go to
        whoever is free.
        """
        batch.look_ahead(limit + self._size)
        for busy in (0, 1):
            ready = [a for a in self._actors if a.has_begun and len(a.duties) == busy]
            for actor in ready:
                task = batch.next(limit, left=busy * self._size)
                if task is None:
                    break
                self._owner[actor.give(task, batch).ref] = actor

    def _wait(self) -> None:
        """Waits until an actor is done with something, in whatever way."""
        first = min(actor.duties[0].until for actor in self._actors if actor.duties)
        patience = None if first == math.inf else max(0.0, first - time.monotonic())
        done, _ = ray.wait(list(self._owner), num_returns=1, timeout=patience)
        for ref in done:
            self._finish(self._owner[ref])
        if not done:
            self._cut_off()

    def _finish(self, actor: _Actor) -> None:
        """Takes the result of an actor's first duty; what comes later came no earlier."""
        duty = actor.duties[0]
        try:
            result = ray.get(duty.ref)
            outcome = result if duty.task is None else self._receive(result)
        except RayTaskError as error:
            outcome = Lost(_told(error))
            if duty.task is None:
                raise EngineError(f"a worker cannot start: {outcome.reason}") from None
        except (RayError, Gone) as error:
            self._bury(actor, _told(error))
            return
        del self._owner[duty.ref]
        actor.duties.popleft()
        actor.watch()
        if duty.task is None:
            self._stillborn = 0
        elif duty.batch is not None:
            duty.batch.settle(duty.task, outcome)

    def _bury(self, actor: _Actor, reason: str) -> None:
        """Replaces an actor that died; its jobs are done again, unless its first killed others."""
        task = actor.duties[0].task
        if task is None:
            self._stillborn += 1
            if self._stillborn >= _DEATHS:
                raise EngineError(f"workers die as they start: {reason}")
        else:
            task.deaths += 1
        hopeless = task is not None and task.deaths >= _DEATHS
        lost = Lost(f"{_DEATHS} workers died of it: {reason}", timed_out=True)
        self._replace(actor, lost if hopeless else None)

    def _replace(self, actor: _Actor, lost: Lost | None) -> None:
        """Puts another actor in the place of one; says why its first job is lost, if it is."""
        actor.end()
        self._actors.remove(actor)
        for number, duty in enumerate(actor.duties):
            del self._owner[duty.ref]
            if duty.task is None or duty.batch is None:
                continue
            if number == 0 and lost is not None:
                duty.batch.settle(duty.task, lost)
            else:
                duty.batch.redo([duty.task])
        self._hire()

    def _cut_off(self) -> None:
        """Ends the actors whose first job is past its deadline: that job is lost."""
        now = time.monotonic()
        for actor in [actor for actor in self._actors if actor.duties]:
            duty = actor.duties[0]
            if duty.until > now:
                continue
            if duty.task is not None:
                late = f"cut off after {duty.task.job.deadline_s:g} s"
                self._replace(actor, Lost(late, timed_out=True))
            elif any(other.has_begun for other in self._actors):
                duty.until = math.inf  # the others do the work meanwhile
            else:
                raise EngineError(
                    f"no worker started within {_START_S:.0f} s: "
                    f"{self._size} are wanted, free are {_free_cpus():.0f} CPUs"
                )


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
