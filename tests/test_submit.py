"""A run on a fleet from afar: submitted, followed over whatever happens, brought home."""

from __future__ import annotations

import errno
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from deploy.cli import run
from deploy.cli.connecting import connection_of
from deploy.fleet.bundle import build_bundle
from deploy.fleet.connection import Connection, NotReached, answered
from deploy.fleet.home import ServerHome, create_home
from deploy.fleet.remote import FlowerRun
from deploy.fleet.submit import (
    Follower,
    Pace,
    bring_home,
    new_run_id,
    read_submission,
    resume,
    submit,
)
from server.event_log import EVENTS, Ended, EventLog, read_event
from server.events import BlockFinished, Event, Notice, StageStarted
from server.fleet_run import fleet_folder, held_for_run, recorded
from server.run_folder import RunFolder
from shared_models.config import parse_config
from shared_models.errors import InputError, RoundError, ServerError, WildflowerError
from tests.in_memory import config_of
from tests.test_own_task import CONFIG, MINE

STARTED = StageStarted("train", 4, 0, 12, 10)
QUICK = Pace(look_s=0.0, status_s=0.0, longest_s=0.0)


def test_the_bundle_is_our_code_and_nothing_else_wherever_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = build_bundle()
    monkeypatch.chdir(tmp_path)
    assert build_bundle() == here
    names = zipfile.ZipFile(io.BytesIO(here)).namelist()
    assert {"server/app.py", "clients/app.py", "shared_models/wire.py"} <= {*names}
    roots = {name.partition("/")[0] for name in names}
    others = {"pyproject.toml", "README.md", ".info"}
    assert roots == {"server", "clients", "shared_models", *others}
    assert not [name for name in names if "__pycache__" in name]


def test_packages_without_their_pyproject_cannot_be_bundled(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no pyproject\.toml beside the packages"):
        build_bundle(tmp_path)


def test_a_run_has_a_folder_of_its_own_on_the_server(tmp_path: Path) -> None:
    state = {"WILDFLOWER_STATE": str(tmp_path)}
    first, second = new_run_id("a" * 80), new_run_id("a" * 80)
    assert first != second
    assert fleet_folder(first, "", state) == tmp_path / "runs" / first


@pytest.mark.parametrize("name", ["", "..", ".a", "a/b", "../a", "a" * 81, "a\n", "ä"])
def test_a_run_id_that_is_a_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run id"):
        fleet_folder(name, "", {"WILDFLOWER_STATE": str(tmp_path)})


def test_a_server_without_a_state_folder_says_so() -> None:
    with pytest.raises(InputError, match="needs WILDFLOWER_STATE; start the server"):
        fleet_folder("run-1", "", {})


def events_in(path: Path) -> list[Event | Ended]:
    return [event for line in path.read_text().splitlines() if (event := read_event(line))]


def test_events_come_back_as_they_were_and_a_torn_line_costs_itself_only(tmp_path: Path) -> None:
    log = EventLog(tmp_path / EVENTS)
    log(STARTED)
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"event": "block_fin')
    log(BlockFinished("train", 1, 4))
    log.end(Ended("failed", "17", "no usable update"))
    told = events_in(tmp_path / EVENTS)
    assert told == [
        STARTED,
        BlockFinished("train", 1, 4),
        Ended("failed", "17", "no usable update"),
    ]


@pytest.mark.parametrize("line", ["", "7", "[]", '{"event": "x"}', '{"event": "notice"}', "{"])
def test_what_is_no_event_is_passed_over(line: str) -> None:
    assert read_event(line) is None


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run-1")
    found.create(config_of())
    return found


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RoundError("none of 10 clients"), "none of 10 clients"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/state/x"),
            "/state/x: the server's disk is full; free some space, then go on with --resume",
        ),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero; `wildflower logs run-1` tells"),
    ],
)
def test_our_own_errors_are_events_with_a_reason(
    folder: RunFolder, error: Exception, told: str
) -> None:
    with (
        pytest.raises((type(error), WildflowerError)),
        recorded(folder.path, 17, print),
        held_for_run(folder),
    ):
        raise error
    (ended,) = events_in(folder.path / EVENTS)
    assert isinstance(ended, Ended)
    assert (ended.status, ended.flower_run) == ("failed", "17")
    assert (ended.reason or "").startswith(told)
    assert folder.summary() == {"status": "failed", "reason": ended.reason}


def test_a_superlink_that_goes_away_is_no_end_of_our_run(folder: RunFolder) -> None:
    with (
        pytest.raises(ConnectionError),
        recorded(folder.path, 17, print),
        held_for_run(folder),
    ):
        raise ConnectionError
    assert not (folder.path / EVENTS).exists()
    assert folder.summary() == {}


def test_a_run_that_goes_on_has_not_failed_any_more(folder: RunFolder) -> None:
    folder.update_summary(status="failed", reason="none of 10 clients")
    with recorded(folder.path, 18, print), held_for_run(folder):
        assert folder.summary() == {}
    assert folder.summary() == {"status": "done"}
    assert events_in(folder.path / EVENTS) == [Ended("done", "18")]


def test_the_status_is_his_who_holds_the_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.fleet_run._HELD_S", 0.2)
    folder.update_summary(status="failed", reason="of the one at work")
    with (
        folder.held(),
        pytest.raises(InputError, match="another process"),
        recorded(folder.path, 19, print),
        held_for_run(folder),
    ):
        raise AssertionError("nobody else gets in")
    assert folder.summary() == {"status": "failed", "reason": "of the one at work"}


@dataclass
class NearBy:
    """A server that is a folder; `script` says what happens when a Flower run is looked at."""

    state: Path
    script: Iterator[str] = field(default_factory=lambda: iter(()))
    started: list[bool] = field(default_factory=list)
    connection: Connection = field(default_factory=lambda: Connection("127.0.0.1:1", None))
    at_work: list[FlowerRun] = field(default_factory=list)

    def start(self, run: str, config: str, *, resume: bool, own: Path | None = None) -> int:
        del config, own
        (self.state / run).mkdir(parents=True, exist_ok=True)
        self.started.append(resume)
        return len(self.started)

    def log(self, run: str) -> EventLog:
        return EventLog(self.state / run / EVENTS)

    def flower_run(self, number: int) -> FlowerRun:
        now = next(self.script, "running")
        if now == "away":
            raise ServerError("127.0.0.1:1: does not answer: refused")
        if now == "done":
            self.log(next(self.state.iterdir()).name).end(Ended("done", str(number)))
        over = now in ("killed", "stopped")
        ended = "stopped" if now == "stopped" else "failed"
        return FlowerRun(number, "", "finished" if over else now, ended if over else "", "gone", "")

    def flower_runs(self) -> list[FlowerRun]:
        return self.at_work

    def files(self, run: str) -> Mapping[str, int]:
        own = self.state / run
        found = [path for path in own.rglob("*") if path.is_file()]
        return {path.relative_to(own).as_posix(): path.stat().st_size for path in found}

    def read(self, run: str, path: str, offset: int = 0) -> bytes:
        file = self.state / run / path
        return file.read_bytes()[offset:] if file.exists() else b""


@dataclass
class Case:
    """A run that was submitted to a server nearby."""

    remote: NearBy
    folder: Path
    told: list[Event]

    @property
    def run(self) -> str:
        return read_submission(self.folder).run

    def follow(self, *script: str, offset: int = 0) -> list[str]:
        self.remote.script = iter(script)
        Follower(self.remote, self.folder, self.told.append, offset=offset, pace=QUICK).follow()
        return [event.text for event in self.told if isinstance(event, Notice)]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    remote, folder = NearBy(tmp_path / "state"), tmp_path / "here"
    submit(remote, config_of(), "digits-1", folder)
    return Case(remote, folder, [])


def test_a_task_whose_model_answers_wrongly_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sent.py").write_text(MINE.replace("nn.Linear(32, 3)", "nn.Linear(32, 4)"))
    remote, folder = NearBy(tmp_path / "state"), tmp_path / "here"
    own = parse_config(CONFIG.replace("moves:TASK", "sent:TASK"), "moves.toml")
    with pytest.raises(InputError, match=r"task 'sent:TASK': .* answered \(2, 4\)"):
        submit(remote, own, "moves-1", folder)
    assert not remote.started
    assert not folder.exists()


def test_a_run_is_shown_until_it_is_done(case: Case) -> None:
    case.remote.log(case.run)(STARTED)
    assert case.follow("running", "done") == []
    assert case.told == [STARTED]
    assert json.loads((case.folder / "submission.json").read_text()) == {
        "server": "127.0.0.1:1",
        "run": "digits-1",
        "flower_run": 1,
        "ca": None,
        "token": None,
    }


def test_a_server_that_is_away_is_waited_for_and_told_of_once(case: Case) -> None:
    told = case.follow("running", "away", "away", "away", "running", "done")
    assert told == [
        "127.0.0.1:1: does not answer: refused; waiting for it",
        "127.0.0.1:1 is back",
    ]


def test_a_run_whose_superlink_was_killed_is_submitted_again_by_itself(case: Case) -> None:
    case.remote.log(case.run)(STARTED)
    told = case.follow("away", "killed", "running", "done")
    assert "Flower's run has ended (gone): submitted again" in told[-1]
    assert case.remote.started == [False, True]
    assert read_submission(case.folder).flower_run == 2


def test_it_is_given_up_after_ten_times_without_a_round(case: Case) -> None:
    case.remote.log(case.run)(STARTED)
    with pytest.raises(ServerError, match=r"ended 11 times without a new round \(gone\)"):
        case.follow(*["killed"] * 20)
    assert case.remote.started == [False, *[True] * 10]


def test_a_run_that_failed_is_not_submitted_again_and_the_reason_is_told(case: Case) -> None:
    case.remote.log(case.run).end(Ended("failed", "1", "none of 10 clients sent an update"))
    with pytest.raises(ServerError, match=r"none of 10 clients .* --resume` goes on"):
        case.follow("killed")
    assert case.remote.started == [False]


def test_a_run_that_somebody_stopped_stays_so(case: Case) -> None:
    case.remote.log(case.run)(STARTED)
    with pytest.raises(ServerError, match=r"was stopped; .* --resume` goes on"):
        case.follow("stopped")
    assert case.remote.started == [False]


def test_resume_goes_on_with_what_failed_and_passes_over_what_it_told(case: Case) -> None:
    log = case.remote.log(case.run)
    log(STARTED)
    log.end(Ended("failed", "1", "none of 10 clients"))
    case.remote.script = iter(["killed"])
    offset = resume(case.remote, case.folder)
    assert case.remote.started == [False, True]
    log(BlockFinished("train", 2, 4))
    case.follow("done", offset=offset)
    assert case.told == [BlockFinished("train", 2, 4)]


def test_resume_follows_what_still_runs(case: Case) -> None:
    case.remote.log(case.run)(STARTED)
    assert resume(case.remote, case.folder) == 0
    assert case.remote.started == [False]


def test_a_run_that_is_at_work_is_taken_up_and_not_started_twice(case: Case) -> None:
    case.remote.script = iter(["killed"])
    case.remote.at_work = [
        FlowerRun(5, case.run, "finished", "failed", "", ""),
        FlowerRun(6, case.run, "running", "", "", ""),
        FlowerRun(7, "another", "running", "", "", ""),
    ]
    resume(case.remote, case.folder)
    assert case.remote.started == [False]
    assert read_submission(case.folder).flower_run == 6


def test_what_a_person_needs_comes_home_and_nothing_else(case: Case) -> None:
    there = case.remote.state / case.run
    wanted = ["manifest.json", "train.safetensors", "client_metrics/train-000001.json"]
    for name in [*wanted, "summary.json", "checkpoints/00-x.safetensors", "x.db", "../up.json"]:
        path = there / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    bring_home(case.remote, case.folder)
    home = {path.relative_to(case.folder).as_posix() for path in case.folder.rglob("*.*")}
    assert home == {*wanted, "summary.json", "config.toml", "submission.json"}


def test_a_file_that_came_short_is_not_kept(case: Case) -> None:
    @dataclass
    class Short(NearBy):
        def read(self, run: str, path: str, offset: int = 0) -> bytes:
            return super().read(run, path, offset)[:-1]

    (case.remote.state / case.run / "model.safetensors").write_text("weights")
    with pytest.raises(ServerError, match=r"model.safetensors came as 6 of 7 bytes"):
        bring_home(Short(case.remote.state), case.folder)
    assert not (case.folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["submit", "CONFIG"], "--server HOST:PORT is missing"),
        (["submit", "nothing.toml", "--server", "127.0.0.1:1", "--insecure"], "no such file"),
        (["submit", "CONFIG", "--server", "127.0.0.1:1"], "--ca FILE is missing"),
        (["submit", "CONFIG", "--server", "10.0.0.1:1", "--insecure"], "is not this machine"),
        (["status", "--server", "a..b:1", "--insecure"], "'a..b:1' is not HOST:PORT"),
        (["submit", "FOLDER", "--resume"], "was not submitted"),
        (["logs", "FOLDER"], "nothing was submitted from there"),
        (["stop", "FOLDER"], "nothing was submitted from there"),
        (["submit", "FOLDER", "--resume", "-s", "seed=1"], "-s does not go with --resume"),
        (["status", "--server", "127.0.0.1:1", "--credentials", "nowhere"], "no such folder"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: list[str],
    told: str,
    digits_toml: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"CONFIG": str(digits_toml), "FOLDER": str(tmp_path)}
    assert run([known.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


CERTIFICATE = (
    "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch (_ssl.c:1006)"
)


@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        (401, InputError, "token is missing or wrong; give the server's operator.token by --token"),
        (403, InputError, "token is missing or wrong"),
        (500, ServerError, "answered 500: it broke$"),
        (httpx.ConnectError("[Errno 111] refused"), NotReached, r"does not answer: .* refused$"),
        (httpx.ReadTimeout(""), ServerError, "does not answer: ReadTimeout$"),
        (httpx.ConnectError(CERTIFICATE), InputError, r"not trusted \(Hostname mismatch\); give"),
        (httpx.InvalidURL("Invalid IDNA hostname"), InputError, "is no address: Invalid IDNA"),
        (ValueError("no\nprotobuf"), ServerError, "is no Wildflower server: no protobuf$"),
    ],
)
def test_what_goes_wrong_on_the_way_is_told_by_what_can_be_done(
    fault: int | Exception, kind: type[WildflowerError], told: str
) -> None:
    def serve(_: httpx.Request) -> httpx.Response:
        if isinstance(fault, Exception):
            raise fault
        return httpx.Response(fault, text="it\nbroke")

    with (
        pytest.raises(kind, match=f"example:8000: .*{told}") as error,
        answered(Connection("example:8000", None)),
        httpx.Client(transport=httpx.MockTransport(serve)) as far,
    ):
        far.get("http://example/").raise_for_status()
    assert type(error.value) is kind
    assert "\n" not in str(error.value)


def test_a_server_that_is_not_there_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["status", "--server", "127.0.0.1:1", "--insecure"]) == 1
    assert "127.0.0.1:1: does not answer" in capsys.readouterr().err


class Closed(NearBy):
    """A server that is not there."""

    def start(self, run: str, config: str, *, resume: bool, own: Path | None = None) -> int:
        del run, config, resume, own
        raise NotReached("127.0.0.1:1: does not answer")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_submission_that_came_to_nothing_leaves_nothing(
    tmp_path: Path, *, is_there: bool
) -> None:
    folder = tmp_path / "here"
    if is_there:
        folder.mkdir()
    with pytest.raises(NotReached):
        submit(Closed(tmp_path / "state"), config_of(), "digits-1", folder)
    assert [path.name for path in tmp_path.rglob("*")] == (["here"] if is_there else [])


def test_a_submission_says_where_the_credentials_are_and_not_what_they_are(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "server")
    create_home(home, [], 30)
    token = home.token_file.read_text().strip()
    at = Connection("127.0.0.1:1", home.ca, token, home.token_file)
    submit(NearBy(tmp_path / "state", connection=at), config_of(), "digits-1", tmp_path / "here")
    assert token not in (tmp_path / "here" / "submission.json").read_text()
    kept = read_submission(tmp_path / "here")
    assert connection_of(None, None, None, None, insecure=False, kept=kept) == at
