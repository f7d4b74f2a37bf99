"""A real fleet that is scraped: what its server and a device serve is what the run did."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from deploy.fleet.home import ServerHome, create_home
from tests.bare_fleet import free_port
from tests.fleet_processes import Fleet
from tests.test_fleet_client import device, wait_for
from tests.test_fleet_server import started
from tests.test_metrics import parsed

pytestmark = pytest.mark.slow


def served_at(port: int) -> dict[tuple[str, ...], float]:
    """Returns what is served at a port; nothing before somebody serves there."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return parsed(answer.read().decode())
    except URLError:
        return {}


@contextlib.contextmanager
def fleet(folder: Path, port: int) -> Iterator[Fleet]:
    home = ServerHome(folder / "server")
    create_home(home, [], 365)
    options = ("--host", "127.0.0.1", "--metrics-port", str(port), "--log-format", "json")
    with started(home, *options) as server:
        yield Fleet(folder, server)


def test_a_fleet_s_run_is_scraped_at_its_server_and_at_a_device(tmp_path: Path) -> None:
    at_server, at_device = free_port(), free_port()
    with fleet(tmp_path, at_server) as found:
        with found.device("gateway", "0-1", is_waited_for=False):
            pass  # has its key now
        key = ("--key", str(tmp_path / "gateway/client.key"), "--ca", str(found.server.home.ca))
        about = ("--server", found.address, *key, "--data", "digits", "--hosts", "0-1")
        with (
            device(tmp_path / "gateway", *about, "--metrics-port", str(at_device)) as client,
            found.submitted("stages.train.rounds=3") as run,
        ):
            run.complete(3)
            run_id = json.loads((run.home / "submission.json").read_text())["run"]
            stage = (run_id, "train")
            wait_for(lambda: served_at(at_server).get(("wildflower_rounds_total", *stage)) == 3, 10)
            wait_for(lambda: served_at(at_server).get(("wildflower_runs", "finished")) == 1, 60)
            server, own = served_at(at_server), served_at(at_device)
            assert client.process.poll() is None
        log = [json.loads(line) for line in found.server.output.read_text().splitlines()]
    assert server["wildflower_clients_total", "aggregated", *stage] == 6
    assert server["wildflower_queue_clients", *stage] == 0
    assert server["wildflower_run_failed", run_id] == 0
    assert server[("wildflower_superlink_up",)] == 1
    assert server["wildflower_nodes", "online"] == 1
    assert own[("wildflower_client_connected",)] == 1
    assert own[("wildflower_client_hosted",)] == 2
    assert own["wildflower_client_messages_total", "answered", "train.block"] >= 3
    assert own[("wildflower_client_trainer_memory_bytes",)] > 1e7
    rounds = [line["round"] for line in log if line.get("event") == "round_finished"]
    assert rounds == [1, 2, 3]
    assert any("listening" in line.get("message", "") for line in log)
