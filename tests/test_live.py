"""`wildflower live`: the report follows the run, and only those look who may."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from deploy.fleet.run_files import describe_files
from deploy.report.headline import headline
from deploy.report.live import COOKIE, Served, make_app
from deploy.report.mirror import Mirror
from deploy.report.page import make_page, render_content
from deploy.report.reading import read_story
from server.event_log import EVENTS, EventLog
from server.events import Notice, StageStarted, Waiting
from shared_models.errors import ServerError
from tests.told_runs import records, write_run
from tests.verbs import refused

TOKEN = "a-token-of-enough-characters"  # noqa: S105  not a secret: a test's


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that goes on."""
    return write_run(tmp_path / "told", rounds=3)


def browser(folder: Path, token: str | None = None, url: str = "http://localhost") -> TestClient:
    app = make_app(lambda: [read_story(folder)], Served(every_s=0.0, token=token))
    return TestClient(app, base_url=url, follow_redirects=False)


def one_more_round(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(records()[3].to_json() + "\n")


def test_there_is_news_when_the_run_has_gone_on(folder: Path) -> None:
    client = browser(folder)
    assert 'data-live="0.0"' in client.get("/").text
    first = client.get("/news")
    same = {"If-None-Match": first.headers["etag"]}
    assert client.get("/news", headers=same).status_code == 304
    one_more_round(folder)
    answer = client.get("/news", headers=same)
    assert answer.status_code == 200
    assert "4 of 5 rounds of train" in answer.text


def test_without_a_token_only_names_of_this_machine_are_answered(folder: Path) -> None:
    client = browser(folder)
    names = {"127.0.0.1:8321": 200, "[::1]:8321": 200, "localhost": 200}
    names |= {"evil.example": 403, "127.0.0.1.evil.example:8321": 403, "[::1": 403}
    for name, code in names.items():
        assert client.get("/news", headers={"Host": name}).status_code == code


def test_with_a_token_nobody_looks_without_it(folder: Path) -> None:
    client = browser(folder, TOKEN, "http://fleet.example")
    for path in ("/", "/news", "/?token=", f"/?token={TOKEN}x", "/nothing"):
        assert client.get(path).status_code == 401
    assert client.get("/", headers={"Cookie": f"{COOKIE}=wrong"}).status_code == 401
    answer = client.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.get("/news").status_code == 200  # the client has the cookie now


def test_nothing_is_kept_framed_or_guessed(folder: Path) -> None:
    headers = browser(folder).get("/").headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"


class Elsewhere:
    """A server's run folders that lie here; it counts what is sent."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.sent = 0
        self.away = False
        self.refused = ""

    def folders(self) -> list[dict[str, Any]]:
        if self.away:
            raise ServerError("fleet.example:8000 does not answer")
        return [{"run": path.name, "status": "running"} for path in self.runs.iterdir()]

    def files(self, run: str) -> Mapping[str, int]:
        return {own["path"]: own["bytes"] for own in describe_files(self.runs / run)}

    def read(self, run: str, path: str, offset: int = 0) -> bytes:
        if path == self.refused:
            raise ServerError("fleet.example:8000 does not answer")
        content = (self.runs / run / path).read_bytes()[offset:]
        self.sent += len(content)
        return content


def test_a_run_far_away_is_copied_as_it_grows(folder: Path, tmp_path: Path) -> None:
    remote = Elsewhere(folder.parent)
    mirror = Mirror(remote, "told", tmp_path / "copy")
    story = mirror.story()
    assert (story.status, story.records, story.notes) == ("running", tuple(records(3)), ())
    assert story.clients is not None
    before = remote.sent
    assert mirror.story() == story
    assert remote.sent == before
    one_more_round(folder)
    assert len(mirror.story().records) == 4
    assert remote.sent - before == len(records()[3].to_json()) + 1
    remote.away = True
    assert len(mirror.story().records) == 4


def test_a_server_that_is_away_is_told_with_what_it_had(folder: Path, tmp_path: Path) -> None:
    remote = Elsewhere(folder.parent)
    mirror = Mirror(remote, "told", tmp_path / "copy")
    assert not any("does not answer" in said for said in headline(mirror.story()))
    remote.away = True
    assert "does not answer; this is what it told until 20" in headline(mirror.story())[1]
    remote.away = False
    assert mirror.story().away == ""


@pytest.mark.parametrize("grown", [0, 2])
def test_rounds_that_a_resumed_run_took_back_are_forgotten(
    folder: Path, tmp_path: Path, grown: int
) -> None:
    remote = Elsewhere(folder.parent)
    mirror = Mirror(remote, "told", tmp_path / "copy")
    mirror.story()
    log = EventLog(folder / EVENTS)
    again = [replace(own, train_loss=9.0) for own in records(2 + grown)[1:]]
    rest = [records()[0], *again]
    (folder / "metrics.jsonl").write_text("".join(own.to_json() + "\n" for own in rest))
    log(StageStarted("train", 5, 1, 20, 10))
    assert mirror.story().records == tuple(rest)


def test_a_server_that_goes_away_while_it_tells_takes_nothing(folder: Path, tmp_path: Path) -> None:
    remote = Elsewhere(folder.parent)
    mirror = Mirror(remote, "told", tmp_path / "copy")
    mirror.story()
    EventLog(folder / EVENTS)(StageStarted("tune", 5, 0, 20, 10))
    remote.refused = "metrics.jsonl"
    assert len(mirror.story().records) == 3
    remote.refused = ""
    one_more_round(folder)
    assert len(mirror.story().records) == 4


def test_a_file_that_shrank_is_read_anew_at_once(folder: Path, tmp_path: Path) -> None:
    mirror = Mirror(Elsewhere(folder.parent), "told", tmp_path / "copy")
    mirror.story()
    (folder / "metrics.jsonl").write_text(records()[0].to_json() + "\n")
    assert mirror.story().records == (records()[0],)


def test_whom_a_fleet_waits_for_and_whom_it_left_out_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "told", rounds=0)
    log = EventLog(folder / EVENTS)
    log(Waiting(1, 2, 0, 30.0))
    log(Notice("device-2 is left out: it has no data"))
    story = read_story(folder, "running")
    assert story.notices == ("device-2 is left out: it has no data",)
    assert any("1 of 2 clients are here" in said for said in headline(story))
    assert "is left out: it has no data" in render_content(make_page([story], ""))
    log(StageStarted("train", 5, 0, 20, 10))
    assert not read_story(folder, "running").waiting
    assert not any("waiting" in said for said in headline(read_story(folder, "running")))


def test_who_was_never_there_is_told(folder: Path, tmp_path: Path) -> None:
    remote = Elsewhere(folder.parent)
    remote.away = True
    with pytest.raises(ServerError, match="does not answer"):
        Mirror(remote, "told", tmp_path / "copy").story()


def test_what_cannot_be_served_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "RUN" in refused(capsys, "live")
    assert "not a run folder" in refused(capsys, "live", str(tmp_path))
    (tmp_path / "token").write_text("short")
    words = ("live", str(folder), "--live-token", str(tmp_path / "token"))
    assert "16 letters" in refused(capsys, *words)
    assert "--bind" in refused(capsys, "live", str(folder), "--bind", "203.0.113.1")


@pytest.mark.slow
@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])  # noqa: S104  what is tested
def test_the_verb_serves_until_it_is_interrupted(folder: Path, bind: str) -> None:
    words = [sys.executable, "-m", "deploy", "live", str(folder), "--port", "0", "--bind", bind]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = httpx.URL(process.stdout.readline().split(" ")[0]).copy_with(host="127.0.0.1")
        bare = url.copy_with(query=None)
        assert httpx.get(bare).status_code == (200 if bind == "127.0.0.1" else 401)
        with httpx.Client(follow_redirects=True) as client:
            assert "told" in client.get(url).text
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
