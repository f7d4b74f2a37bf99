"""`wildflower live --server`: the page of a fleet's run, with real processes all the way."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import httpx
import pytest

from tests.fleet_processes import Fleet, running_fleet
from tests.test_fleet_client import wait_for
from tests.test_fleet_server import WILDFLOWER

pytestmark = pytest.mark.slow


@dataclass
class Page:
    """A page that is served, as who looks at it sees it."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        return self.output.read_text()

    def words(self) -> str:
        """Returns the text of the page, empty before there is one."""
        found = re.search(r"http://\S+", self.said())
        if found is None:
            return ""
        html = httpx.get(f"{found[0]}news", timeout=60).raise_for_status().text
        plain = re.sub(r"<script.*?</script>|<[^>]+>", " ", html, flags=re.DOTALL)
        return re.sub(r"\s+", " ", unescape(plain))

    def shows(self, text: str, seconds: float = 240) -> None:
        wait_for(lambda: text in self.words() or self.process.poll() is not None, seconds)
        assert self.process.poll() is None, self.said()


@contextlib.contextmanager
def live(fleet: Fleet, *options: str) -> Iterator[Page]:
    output = fleet.folder / "live.out"
    words = [WILDFLOWER, "live", *fleet.access, "--port", "0", "--every", "0.5", *options]
    with output.open("wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield Page(process, output)
    finally:
        process.kill()
        process.wait()


def test_a_page_follows_a_fleet_from_before_its_run_until_after_its_server(tmp_path: Path) -> None:
    with running_fleet(tmp_path) as fleet, live(fleet) as page:
        wait_for(lambda: "waits for one" in page.said(), 60)
        with fleet.device("one", "0-1"), fleet.device("wrong", "7", is_waited_for=False):
            rounds = ("stages.train.rounds=2", "evaluate.clients_fraction=1.0")
            with fleet.submitted(*rounds) as run:
                page.shows("rounds of train")
                page.shows("1 of 2 rounds of train")
                run.complete(2)
            page.shows("in 2 rounds of train")
            assert "wrong" in page.words()  # who was left out
            assert "on the wire" in page.words()
            assert "2 clients measured it" in page.words()
        fleet.server.process.terminate()
        fleet.server.process.wait(60)
        page.shows("the server does not answer; this is what it told until")
        assert "in 2 rounds of train" in page.words()
        page.process.send_signal(signal.SIGINT)
        assert page.process.wait(30) == 0
