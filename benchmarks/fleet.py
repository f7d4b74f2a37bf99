"""What a round of a fleet costs beside its training: `python -m benchmarks.fleet`.

A real server and two real devices on this machine, TLS and node keys on; a training of hundredths
of a second. Once the devices are Flower's own SuperNodes, which import torch and load the data for
every message; once they are `wildflower client`, whose trainer is warm.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import told_in_a_line
from benchmarks.machine import machine
from benchmarks.systems import ENVIRONMENT
from shared_models.errors import WildflowerError

DEVICES = ("one", "two")
_BIN = Path(sys.executable).parent
_LIMIT_S = 900.0
_START_S = 60.0


@dataclass(frozen=True)
class Site:
    """Where a server listens, and a folder for all that it and its devices keep."""

    folder: Path
    address: str

    @property
    def server(self) -> Path:
        """The server's state folder."""
        return self.folder / "server"


Device = Callable[[Site, int, str], list[str]]
"""The command that starts the device with this number and name."""


def warm(site: Site, number: int, name: str) -> list[str]:
    """Returns how a device starts whose trainer is warm."""
    own = site.folder / name
    command = ["client", "--server", site.address, "--credentials", str(own)]
    command += ["--state", str(own / "state"), "--data", "digits", "--client-id", str(number)]
    return [str(_BIN / "wildflower"), *command]


def cold(site: Site, number: int, name: str) -> list[str]:
    """Returns how Flower's own SuperNode starts."""
    own, place = site.folder / name, f"partition-id={number} num-partitions={len(DEVICES)}"
    command = [str(_BIN / "flower-supernode"), "--superlink", site.address]
    command += ["--root-certificates", str(own / "ca.pem"), "--port", str(_free_port())]
    command += ["--auth-supernode-private-key", str(own / "client.key"), "--node-config", place]
    return command


def round_seconds(device: Device, rounds: int) -> list[float]:
    """Returns what each round but the first took; raises `WildflowerError` when a part fails."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        site = Site(Path(name), f"127.0.0.1:{_free_port()}")
        _prepare(site)
        with contextlib.ExitStack() as running:
            running.enter_context(_process(_serve(site), site.folder / "server.log"))
            _wait_for_server(site)
            for number, device_name in enumerate(DEVICES):
                log = site.folder / f"{device_name}.log"
                running.enter_context(_process(device(site, number, device_name), log))
            _call(site, _submit(site, rounds))
        lines = next(site.server.glob("runs/*/metrics.jsonl")).read_text().splitlines()
    return [json.loads(line)["seconds"]["total"] for line in lines[1:]]


def _wait_for_server(site: Site) -> None:
    deadline = time.monotonic() + _START_S
    status = ["status", "--server", site.address, "--credentials", str(site.server)]
    while _called(site, status).returncode:
        if time.monotonic() > deadline:
            raise WildflowerError(f"the server does not answer within {_START_S:.0f} s")
        time.sleep(0.2)


def _prepare(site: Site) -> None:
    _call(site, ["server", "init", "--state", str(site.server), "--name", "localhost"])
    for name in DEVICES:
        where = ["--state", str(site.server), "--out", str(site.folder / name)]
        _call(site, ["server", "add-client", name, *where])


def _serve(site: Site) -> list[str]:
    host, _, port = site.address.partition(":")
    command = ["server", "start", "--state", str(site.server), "--host", host, "--port", port]
    return [str(_BIN / "wildflower"), *command]


def _submit(site: Site, rounds: int) -> list[str]:
    config = Path(__file__).parents[1] / "examples/digits.toml"
    settings = ["data.clients=2", "stages.train.clients_per_round=2"]
    settings += [f"stages.train.rounds={rounds}", "stages.train.local_epochs=1"]
    told = [word for setting in settings for word in ("-s", setting)]
    where = ["--server", site.address, "--credentials", str(site.server), "--follow"]
    return ["submit", str(config), *where, *told]


def _call(site: Site, arguments: list[str]) -> None:
    done = _called(site, arguments)
    if done.returncode:
        raise WildflowerError(f"`wildflower {arguments[0]}` failed: {done.stderr.strip()}")


def _called(site: Site, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(_BIN / "wildflower"), *arguments],
        check=False,
        cwd=site.folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[None]:
    """Runs a program meanwhile."""
    with log.open("w") as out:
        programs = os.pathsep.join(
            [str(_BIN), os.environ["PATH"]]
        )  # Flower looks there for its own
        environment = {**os.environ, **ENVIRONMENT, "PATH": programs}
        running = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            running.terminate()
            running.wait(30)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def told(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Returns the measurement as plain values."""
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    return {
        "round_s": {name: round(median, 2) for name, median in medians.items()},
        "all_s": {name: [round(one, 2) for one in own] for name, own in seconds.items()},
        "ratio": round(medians["cold"] / medians["warm"], 2),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main(
    rounds: Annotated[int, typer.Option(min=2, help="The first is not counted.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a fleet's rounds, with the trainer warm and as Flower does it.

    Example: python -m benchmarks.fleet --json
    """
    with told_in_a_line():
        found = told({"cold": round_seconds(cold, rounds), "warm": round_seconds(warm, rounds)})
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        lines = (f"{name}: {seconds} s a round" for name, seconds in found["round_s"].items())
        print("\n".join([*lines, f"ratio {found['ratio']}"]))


if __name__ == "__main__":
    typer.run(main)
