"""Two hosts with a bad link between them: network namespaces, made and removed here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.link import ADDRESSES

ROOT = Path(__file__).parents[1]
PORT = 8443
WILDFLOWER = str(Path(sys.executable).parent / "wildflower")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None or not Path("/dev/net/tun").exists(),
        reason="needs network namespaces: run as root on Linux, with iproute2 and /dev/net/tun",
    ),
]


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextlib.contextmanager
def process(*command: str, log: Path, stdin: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Runs a program meanwhile; it gets SIGTERM at the end, and half a minute to obey."""
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, cwd=log.parent, stdin=stdin, stdout=out, stderr=subprocess.STDOUT, text=True
        ) as running,
    ):
        try:
            yield running
        finally:
            running.terminate()
            running.wait(30)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[str, str, Path]]:
    """Two namespaces, linked; the third is a file that cuts the link while it exists."""
    cut = tmp_path / "cut"
    here = os.getpid()
    link = (sys.executable, str(ROOT / "tests/link.py"))
    with namespace(f"wild-a-{here}") as a, namespace(f"wild-b-{here}") as b:
        command = (*link, a, b, "--delay-s", "0.05", "--loss", "0.05", "--cut", str(cut))
        with process(*command, log=tmp_path / "link.log", stdin=subprocess.PIPE):
            wait_for(lambda: "ready" in (tmp_path / "link.log").read_text(), 10)
            yield a, b, cut


def wait_for(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rounds(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("runs/*/metrics.jsonl"))


def test_a_run_completes_over_a_bad_link_that_is_cut_for_twenty_seconds(
    hosts: tuple[str, str, Path], tmp_path: Path
) -> None:
    a, b, cut = hosts
    state, server = tmp_path / "server", f"{ADDRESSES[0]}:{PORT}"
    run(WILDFLOWER, "server", "init", "--state", str(state), "--name", ADDRESSES[0], cwd=tmp_path)
    for name in ("one", "two"):
        out = str(tmp_path / name)
        args = ("server", "add-client", name, "--state", str(state), "--out", out)
        run(WILDFLOWER, *args, cwd=tmp_path)
    on_a = ("ip", "netns", "exec", a, WILDFLOWER)
    on_b = ("ip", "netns", "exec", b, WILDFLOWER)
    everywhere = "0.0.0.0"  # noqa: S104 - of a namespace that is ours
    serve = ("server", "start", "--state", str(state), "--host", everywhere, "--port", str(PORT))
    with contextlib.ExitStack() as running:
        running.enter_context(process(*on_a, *serve, log=tmp_path / "server.log"))
        wait_for(lambda: "listening on" in (tmp_path / "server.log").read_text(), 60)
        for client_id, name in enumerate(("one", "two")):
            own = tmp_path / name
            args = ("client", "--server", server, "--credentials", str(own), "--data", "digits")
            more = ("--client-id", str(client_id), "--state", str(own / "state"))
            running.enter_context(process(*on_b, *args, *more, log=tmp_path / f"{name}.log"))
        submit = ("submit", str(ROOT / "examples/digits.toml"), "--server", server)
        quick = ("-s", "data.clients=2", "-s", "stages.train.clients_per_round=2")
        where = ("--credentials", str(state), "--follow", "-s", "stages.train.rounds=6")
        follower = running.enter_context(
            process(*on_b, *submit, *where, *quick, log=tmp_path / "submit.log")
        )
        wait_for(lambda: rounds(state) >= 2 or follower.poll() is not None, 180)
        assert follower.poll() is None, (tmp_path / "submit.log").read_text()
        cut.touch()
        time.sleep(20)
        cut.unlink()
        follower.wait(300)
    assert follower.returncode == 0, (tmp_path / "submit.log").read_text()
    summary = json.loads(next(tmp_path.glob("runs/*/summary.json")).read_text())
    assert summary["status"] == "done"
    assert [stage["rounds"] for stage in summary["stages"]] == [6]
