"""The whole way: `wildflower server`, SuperNodes, `submit`, and a SuperLink that is killed.

Real processes on loopback, half a minute and more each.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.run_folder import RunFolder
from shared_models.files import sha256_of
from tests.bare_fleet import BareFleet, free_port
from tests.conftest import DIGITS, ROOT
from tests.fleet_in_memory import fleet, train
from tests.in_memory import config_of

pytestmark = pytest.mark.slow
WILDFLOWER = (sys.executable, "-W", "ignore", "-m", "deploy")


@dataclass
class Site:
    """A server of ours with two SuperNodes, and a folder to submit from."""

    processes: BareFleet
    config: Path

    @property
    def here(self) -> Path:
        return self.processes.folder

    @property
    def doors(self) -> tuple[str, ...]:
        token = self.processes.state / "operator.token"
        return ("--server", f"127.0.0.1:{self.processes.port}", "--insecure", "--token", str(token))

    def command(self, *arguments: object, doors: bool = True) -> list[str]:
        more = self.doors if doors else ()
        return [*WILDFLOWER, *map(str, arguments), *more]

    def run(self, *arguments: object, code: int = 0, doors: bool = True) -> str:
        command = self.command(*arguments, doors=doors)
        done = subprocess.run(
            command,
            cwd=self.here,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr + self.processes.told()
        return done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    @contextlib.contextmanager
    def following(self, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], Path]]:
        """Yields a submission that is followed, and what it prints."""
        told = self.here / "told.txt"
        with told.open("w") as file:
            process = subprocess.Popen(
                self.command(*arguments),
                cwd=self.here,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        try:
            yield process, told
        finally:
            process.kill()
            process.wait()

    def wait_for(self, told: Path, text: str, seconds: float = 120.0) -> None:
        self.processes.wait(lambda: text in told.read_text(), seconds)

    def only_run(self) -> RunFolder:
        (path,) = (self.here / "runs").iterdir()
        return RunFolder(path)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server and two nodes, all ended afterwards."""
    processes = BareFleet(tmp_path, free_port())
    config = tmp_path / "digits.toml"
    config.write_text(DIGITS)
    found = Site(processes, config)
    found.run("server", "init", "--state", processes.state, "--name", "localhost", doors=False)
    start = ("--state", processes.state, "--host", "127.0.0.1", "--port", processes.port)
    try:
        processes.start("server", *WILDFLOWER, "server", "start", *start, "--insecure")
        log = tmp_path / "server.log"
        processes.wait(lambda: log.exists() and "listening" in log.read_text(), 60)
        for place in range(2):
            processes.start_node(place, 2)
        yield found
    finally:
        processes.close()


def bytes_here(path: Path) -> str:
    """Returns the hash of what the same fleet trains in memory."""
    config = config_of()
    return sha256_of(train(config, fleet(config, 1, 2), path)[0].model_file)


def test_a_run_is_followed_stopped_gone_on_with_and_brought_home(
    site: Site, tmp_path: Path
) -> None:
    with site.following("submit", site.config) as (process, told):
        site.wait_for(told, "train 1:")
        name = site.only_run().path.name
        status = json.loads(site.run("status", "--json"))
        assert [(own["run"], own["status"]) for own in status["runs"]] == [(name, "running")]
        assert [node["status"] for node in status["nodes"]] == ["online", "online"]
        site.run("stop", name)
        assert process.wait(60) == 1
    assert f"{name}: was stopped; `wildflower submit runs/{name} --resume` goes on" in (
        told.read_text()
    )
    assert "not running" in site.run("stop", name, code=2)
    out = site.run("submit", f"runs/{name}", "--resume")
    assert "going on after round" in out
    home = site.only_run()
    assert home.summary()["status"] == "done"
    assert not home.checkpoints.exists()
    assert sha256_of(home.model_file) == bytes_here(tmp_path / "memory")
    assert "train 4:" in site.run("logs", name)
    assert str(site.processes.port) not in home.config_file.read_text()
    token = (site.processes.state / "operator.token").read_text().strip()
    assert token not in "".join(p.read_text(errors="replace") for p in home.path.glob("*.json*"))


def test_a_killed_superlink_costs_no_round_and_no_bit(site: Site, tmp_path: Path) -> None:
    with site.following("submit", site.config) as (process, told):
        site.wait_for(told, "train 2:")
        about = json.loads((site.processes.state / "server.json").read_text())
        os.kill(about["superlink_pid"], signal.SIGKILL)
        assert process.wait(240) == 0, told.read_text() + site.processes.told()
    said = told.read_text()
    assert "does not answer" in said
    assert "submitted again, to go on from its last round" in said
    assert sha256_of(site.only_run().model_file) == bytes_here(tmp_path / "memory")


def test_who_stops_looking_does_not_stop_the_run(site: Site) -> None:
    with site.following("submit", site.config) as (process, told):
        site.wait_for(told, "train 1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    name = site.only_run().path.name
    assert f"`wildflower submit runs/{name} --resume` follows it again" in told.read_text()
    time.sleep(1)
    out = site.run("submit", f"runs/{name}", "--resume")
    assert "train 1:" in out  # the whole run is shown
    assert "going on" not in out
    assert site.only_run().summary()["status"] == "done"


def test_a_run_that_fails_says_why_and_can_be_gone_on_with(site: Site) -> None:
    out = site.run("submit", site.config, "-s", "stages.train.objective=scaffold", code=1)
    assert "clients keep arrays of their own" in out
    name = site.only_run().path.name
    assert f"`wildflower submit runs/{name} --resume` goes on" in out
    status = json.loads(site.run("status", "--json"))
    assert [own["status"] for own in status["runs"]] == ["failed"]


def test_without_the_token_nobody_starts_anything(site: Site) -> None:
    server = ("--server", f"127.0.0.1:{site.processes.port}", "--insecure")
    assert "token" in site.run("status", *server, code=2, doors=False)
    assert "token" in site.run("submit", site.config, *server, code=2, doors=False)
