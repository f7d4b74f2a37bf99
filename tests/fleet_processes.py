"""A fleet as its owners start it, from the command line: with TLS, keys, and a folder for all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.fleet.home import ServerHome, create_home
from deploy.fleet.node_keys import make_node_key
from deploy.fleet.registry import add_client
from tests.conftest import ROOT
from tests.test_fleet_client import Client, device, wait_for, words_of
from tests.test_fleet_server import WILDFLOWER, Server, started

QUICK = ("data.clients=2", "stages.train.clients_per_round=2")


@dataclass
class Submitted:
    """A run that was submitted and is followed."""

    process: subprocess.Popen[bytes]
    output: Path
    home: Path
    state: Path

    def said(self) -> str:
        return self.output.read_text()

    def rounds(self) -> list[dict[str, Any]]:
        """Returns the records that the server has written by now."""
        lines = [
            line for p in self.state.glob("*/metrics.jsonl") for line in p.read_text().splitlines()
        ]
        return [json.loads(line) for line in lines]

    def reach(self, number: int, seconds: float = 120) -> None:
        wait_for(lambda: len(self.rounds()) >= number or self.process.poll() is not None, seconds)
        assert self.process.poll() is None, self.said()

    def end(self, seconds: float = 240) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on after {seconds:g} s:\n{self.said()}") from None

    def complete(self, rounds: int, seconds: float = 240) -> None:
        """Waits for the end, which has to be a good one."""
        assert self.end(seconds) == 0, self.said()
        summary = json.loads((self.home / "summary.json").read_text())
        assert summary["status"] == "done"
        assert [stage["rounds"] for stage in summary["stages"]] == [rounds]

    def failures(self) -> list[dict[str, Any]]:
        return [failure for record in self.rounds() for failure in record["failures"]]


@dataclass
class Fleet:
    """A server that runs, and how devices and submissions come to it."""

    folder: Path
    server: Server

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def access(self) -> tuple[str, ...]:
        return ("--server", self.address, "--credentials", str(self.server.home.path))

    def kill_superlink(self) -> None:
        pid = self.server.superlink()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def device(
        self,
        name: str,
        clients: str,
        data: str = "digits",
        *,
        ca: Path | None = None,
        is_admitted: bool = True,
        is_waited_for: bool = True,
    ) -> Iterator[Client]:
        """Runs a device; started again under its name, it has the state that it had."""
        own = self.folder / name
        if not own.exists():
            own.mkdir()
            self._give_key(own, name, is_admitted=is_admitted)
        key = ("--key", str(own / "client.key"), "--ca", str(ca or self.server.home.ca))
        hosts = ("--hosts" if "-" in clients else "--client-id", clients)
        with device(own, "--server", self.address, *key, "--data", data, *hosts) as client:
            if is_waited_for:
                wait_for(lambda: "connected to" in client.said(), 200)
            yield client

    def _give_key(self, own: Path, name: str, *, is_admitted: bool) -> None:
        pair = make_node_key(name)
        (own / "client.key").write_bytes(pair.private)
        (own / "client.key").chmod(0o600)
        (own / "client.pub").write_bytes(pair.public)
        if is_admitted:
            add_client(self.server.home, name, pair.public)

    @contextlib.contextmanager
    def submitted(self, *settings: str) -> Iterator[Submitted]:
        """Follows a run of the digits; `settings` are what `-s` takes."""
        options = [word for setting in (*QUICK, *settings) for word in ("-s", setting)]
        out = ("--out", str(self.folder / "run"))
        with self._submit(str(ROOT / "examples/digits.toml"), *out, *options) as found:
            yield found

    @contextlib.contextmanager
    def resumed(self) -> Iterator[Submitted]:
        """Goes on with the run that was submitted before."""
        with self._submit(str(self.folder / "run"), "--resume") as found:
            yield found

    @contextlib.contextmanager
    def _submit(self, *arguments: str) -> Iterator[Submitted]:
        output = self.folder / f"submit-{len(list(self.folder.glob('submit-*')))}"
        with output.open("wb") as out:
            process = subprocess.Popen(
                [WILDFLOWER, "submit", *arguments, *self.access],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        try:
            yield Submitted(process, output, self.folder / "run", self.server.home.runs)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running_fleet(folder: Path) -> Iterator[Fleet]:
    """Runs a server without devices."""
    home = ServerHome(folder / "server")
    create_home(home, [], 365)
    with started(home, "--host", "127.0.0.1") as server:
        yield Fleet(folder, server)


def worker_of(client: Client) -> psutil.Process:
    """Returns the process of a device that trains."""
    return next(p for p in client.family() if "clients.warm.worker" in words_of(p))


def wait_for_training(client: Client) -> psutil.Process:
    """Returns the trainer as soon as it works on something that begins now."""
    worker = worker_of(client)
    idle = worker.cpu_times().user
    wait_for(lambda: worker.cpu_times().user > idle + 0.3, 60)
    return worker


def node_ids(folder: Path) -> list[str]:
    """Returns the ids under which a device's nodes were known, one for each start."""
    lines = (folder / "state" / "supernode.log").read_text(errors="replace").splitlines()
    return [line.rsplit(maxsplit=1)[-1] for line in lines if "SuperNode ID" in line]
