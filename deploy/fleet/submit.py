"""A run on a fleet, seen from where it was submitted: started, followed, brought home.

The run belongs to the server. What is here is a copy of what a person needs, made when it is done.
"""

from __future__ import annotations

import json
import re
import secrets
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deploy.fleet.connection import NotReached
from server.event_log import EVENTS, Ended, read_event
from server.events import Event, Notice, Observer, RoundFinished
from shared_models.config import Config, to_toml
from shared_models.errors import InputError, Interrupted, ServerError, one_line
from shared_models.files import write_atomic, write_json
from shared_models.tasks import load_task
from shared_models.tasks.own import file_of, is_own
from shared_models.tasks.trial import try_out

if TYPE_CHECKING:
    from deploy.fleet.connection import Connection
    from deploy.fleet.remote import FlowerRun

SUBMISSION = "submission.json"
_MOST_AGAIN = 10
# What a person needs; the last of them says that all are there.
_WANTED = re.compile(
    r"(config\.toml|manifest\.json|metrics\.jsonl|events\.jsonl|samples\.json|[A-Za-z0-9][\w.-]*\.safetensors"
    r"|client_metrics/[A-Za-z0-9][\w.-]*\.json|summary\.json)",
    re.ASCII,
)


@dataclass(frozen=True)
class Pace:
    """How often is looked for events and for the state of Flower's run, and how long at most."""

    look_s: float = 0.5
    status_s: float = 2.0
    longest_s: float = 15.0


_PACE = Pace()


@dataclass(frozen=True)
class Submission:
    """Where a run is: the server, our own id, and the last of Flower's runs that it had there.

    `ca` and `token` are the files that open the server's doors, by which it is found again.
    """

    server: str
    run: str
    flower_run: int
    ca: str | None = None
    token: str | None = None

    @property
    def ca_file(self) -> Path | None:
        """The server's ca.pem, None without TLS."""
        return None if self.ca is None else Path(self.ca)

    @property
    def token_file(self) -> Path | None:
        """The operator's token."""
        return None if self.token is None else Path(self.token)

    def save(self, folder: Path) -> None:
        """Writes it to the run folder; there is nothing secret in it, only where that is."""
        write_json(folder / SUBMISSION, asdict(self))


class Runs(Protocol):
    """A server's runs: what `Remote` is here, which says what raises what."""

    @property
    def connection(self) -> Connection:
        """Where the server is."""

    def start(self, run: str, config: str, *, resume: bool, own: Path | None = None) -> int:
        """Starts a run, or goes on with it; returns the number that Flower gives it."""

    def flower_run(self, number: int) -> FlowerRun | None:
        """Returns one of Flower's runs; None when the server does not know it."""

    def flower_runs(self) -> list[FlowerRun]:
        """Returns all of Flower's runs, the oldest first."""

    def files(self, run: str) -> Mapping[str, int]:
        """Returns the sizes of the files that can be read of a run."""

    def read(self, run: str, path: str, offset: int = 0) -> bytes:
        """Returns a file of a run from an offset on; nothing where there is no such byte."""


def read_submission(folder: Path) -> Submission:
    """Returns what was submitted into this folder; `InputError` when nothing was."""
    try:
        return Submission(**json.loads((folder / SUBMISSION).read_text()))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: was not submitted: there is no {SUBMISSION} in it; without --resume a "
            "CONFIG is submitted as a new run"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / SUBMISSION}: damaged: {one_line(str(error))}") from None


def new_run_id(name: str) -> str:
    """Returns an id that no other run has."""
    return f"{name[:60]}-{secrets.token_hex(4)}"


def submit(remote: Runs, config: Config, run: str, folder: Path) -> Submission:
    """Starts a run on the server and makes its folder here, which goes if the server refuses."""
    text = to_toml(config)
    submission = _of(remote.connection, run)
    require_one_file(config)
    is_new = not folder.exists()
    try:
        _write(config, text, submission, folder)
        return _started(remote, submission, text, folder, resume=False)
    except (InputError, NotReached, OSError):  # else it may have begun, and the answer was lost
        _clear(folder, is_new=is_new)
        raise


def _of(connection: Connection, run: str) -> Submission:
    paths = (connection.ca, connection.token_file)
    ca, token = (None if path is None else str(path.absolute()) for path in paths)
    return Submission(connection.address, run, 0, ca, token)


def _write(config: Config, text: str, submission: Submission, folder: Path) -> None:
    for name in config.own_tasks:
        try_out(name, load_task(name))  # what is wrong with it is better told here
    if is_own(config.task):
        file = file_of(config.task)
        write_atomic(folder / file, Path(file).read_bytes())
    write_atomic(folder / "config.toml", text.encode())
    submission.save(folder)


def _clear(folder: Path, *, is_new: bool) -> None:
    for path in folder.glob("*"):  # it was empty, if it was there
        path.unlink()
    if is_new and folder.exists():
        folder.rmdir()


def require_one_file(config: Config) -> None:
    """Raises `InputError` for a student of the user's own in another file than the run's task."""
    for stage in config.learning_stages:
        if stage.student is None or not is_own(stage.student):
            continue
        file = file_of(stage.student)
        if not is_own(config.task) or file_of(config.task) != file:
            raise InputError(
                f"stages.{stage.name}.student: {file} does not travel to a fleet, the file of the "
                "run's own task does: put both tasks into one, and name that for task, too"
            )


def submit_again(remote: Runs, submission: Submission, folder: Path) -> Submission:
    """Has the server go on with a run; returns it with the number of Flower's new run.

    One that is at work already, as when an answer was lost, is taken up.
    """
    at_work = [run for run in remote.flower_runs() if run.run == submission.run and not run.is_over]
    if at_work:
        found = replace(submission, flower_run=at_work[-1].id)
        found.save(folder)
        return found
    text = (folder / "config.toml").read_text()
    return _started(remote, submission, text, folder, resume=True)


def _started(
    remote: Runs, submission: Submission, config: str, folder: Path, *, resume: bool
) -> Submission:
    task = tomllib.loads(config)["task"]
    own = folder / file_of(task) if is_own(task) else None
    number = remote.start(submission.run, config, resume=resume, own=own)
    started = replace(submission, flower_run=number)
    started.save(folder)
    return started


class Follower:
    """Shows a run's events as they are written, until it is done.

    While the server is away it waits. When Flower's run has ended and ours has not, the SuperLink
    was restarted under it: it is submitted again, and goes on from its last checkpoint.
    """

    def __init__(
        self,
        remote: Runs,
        folder: Path,
        observe: Observer,
        *,
        offset: int = 0,
        pace: Pace = _PACE,
    ) -> None:
        self._remote = remote
        self._folder = folder
        self._observe = observe
        self._submission = read_submission(folder)
        self._offset = offset
        self._pace = pace
        self._rest = b""
        self._again = 0
        self._away = 0
        self._looked = 0.0

    def follow(self) -> None:
        """Returns when the run is done; raises `ServerError` with the reason when it failed."""
        while not self._patiently():
            longer = self._pace.look_s * 2 ** min(self._away, 8)
            time.sleep(min(longer, self._pace.longest_s))

    def _patiently(self) -> bool:
        try:
            done = self._step()
        except ServerError as error:
            if isinstance(error, _Final):
                raise
            if not self._away:
                self._observe(Notice(f"{error}; waiting for it"))
            self._away += 1
            return False
        self._is_back()
        return done

    def _is_back(self) -> None:
        if self._away:
            self._observe(Notice(f"{self._remote.connection.address} is back"))
        self._away = 0

    def _step(self) -> bool:
        if (ended := self._show()) is not None:
            return self._is_done(ended)
        if time.monotonic() - self._looked < self._pace.status_s and not self._away:
            return False
        self._looked = time.monotonic()
        flower_run = self._remote.flower_run(self._submission.flower_run)
        self._is_back()
        if flower_run is not None and not flower_run.is_over:
            return False
        if (ended := self._show()) is not None:  # what it wrote just before
            return self._is_done(ended)
        self._go_on(flower_run)
        return False

    def _show(self) -> Ended | None:
        """Shows what is new; returns how the run that is followed ended, once it has."""
        for event in self._events():
            if isinstance(event, Ended):
                if event.flower_run == str(self._submission.flower_run):
                    return event
                continue
            if isinstance(event, RoundFinished):
                self._again = 0
            self._observe(event)
        return None

    def _events(self) -> Iterator[Event | Ended]:
        new = self._remote.read(self._submission.run, EVENTS, self._offset)
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            if (event := read_event(line.decode(errors="replace"))) is not None:
                yield event

    def _is_done(self, ended: Ended) -> bool:
        if ended.status == "done":
            return True
        raise _Final(f"{ended.reason}; {self._how_to_go_on()}")

    def _go_on(self, flower_run: FlowerRun | None) -> None:
        """Submits the run again; raises where that is of no use, or not wanted."""
        run, why = self._submission.run, "the server does not know it any more"
        if flower_run is not None:
            why = one_line(flower_run.details) or flower_run.ended
            if flower_run.ended == "stopped":
                raise _Final(f"{run}: was stopped; {self._how_to_go_on()}")
            if flower_run.details.startswith("ServerApp failed") and not self._offset:
                raise _Final(f"{run}: {why}")  # before it had a folder to tell it in
        if self._again == _MOST_AGAIN:
            raise _Final(
                f"{run}: ended {_MOST_AGAIN + 1} times without a new round ({why}); "
                f"`wildflower logs {run}` tells more; {self._how_to_go_on()}"
            )
        time.sleep(min(self._pace.look_s * self._again, self._pace.longest_s))
        self._submission = submit_again(self._remote, self._submission, self._folder)
        self._again += 1
        self._observe(
            Notice(f"Flower's run has ended ({why}): submitted again, to go on from its last round")
        )

    def _how_to_go_on(self) -> str:
        return f"`wildflower submit {self._folder} --resume` goes on"


class _Final(ServerError):
    """It is over; waiting does not help."""


def resume(remote: Runs, folder: Path) -> int:
    """Has a run go on unless it is at work, or done; returns from which byte of its events on.

    What it told before is passed over where it is started again.
    """
    submission = read_submission(folder)
    told = remote.read(submission.run, EVENTS)
    flower_run = remote.flower_run(submission.flower_run)
    at_work = flower_run is not None and not flower_run.is_over
    lines = told.decode(errors="replace").splitlines()
    if at_work or Ended("done", str(submission.flower_run)) in map(read_event, lines[-1:]):
        return 0
    submit_again(remote, submission, folder)
    return len(told)


def bring_home(remote: Runs, folder: Path) -> None:
    """Copies what a person needs of a run that is done, each file whole or not at all."""
    run = read_submission(folder).run
    files = {path: size for path, size in remote.files(run).items() if _WANTED.fullmatch(path)}
    for path in sorted(files, key=lambda path: (path == "summary.json", path)):
        content = remote.read(run, path)
        if len(content) != files[path]:
            raise ServerError(
                f"{run}: {path} came as {len(content)} of {files[path]} bytes; "
                f"`wildflower submit {folder} --resume` fetches it again"
            )
        write_atomic(folder / path, content)


def interrupted(folder: Path, submission: Submission, *, is_home: bool) -> Interrupted:
    """Returns what to tell somebody who stops looking while the run goes on, or when it is done."""
    if is_home:
        return Interrupted(
            f"interrupted; the run is done and is in {folder}: "
            f"`wildflower submit {folder} --resume` does what is left to do here"
        )
    return Interrupted(
        f"interrupted; the run goes on at {submission.server}: `wildflower submit {folder} "
        f"--resume` follows it again, `wildflower stop {submission.run}` stops it"
    )
