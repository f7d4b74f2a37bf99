"""A server as a pod has it: keys that are mounted, an executor beside it, a health that knows."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.cli import run
from deploy.fleet.health import Health, HealthAddress
from deploy.fleet.home import ServerHome, create_home, renew_certificate
from deploy.fleet.node_keys import make_node_key
from deploy.fleet.registry import add_client, remove_client
from shared_models.errors import InputError
from tests.conftest import ROOT
from tests.test_fleet_client import device
from tests.test_fleet_server import WILDFLOWER, Server, free_ports, started, wait_for

SERVING = health_pb2.HealthCheckResponse.SERVING


def asked(port: int, service: str) -> bool | None:
    """What a process says of a service; None where it says nothing."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            told = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        except grpc.RpcError:
            return None
        return bool(told.status == SERVING)


def test_who_is_alive_need_not_be_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    health = Health()
    assert (health.serves(""), health.serves("ready"), health.serves("other")) == (
        True,
        False,
        None,
    )
    health.beat(ready=True)
    assert health.serves("ready")
    now = 61.0
    assert (health.serves(""), health.serves("ready")) == (False, False)


def test_health_is_asked_over_grpc() -> None:
    (port,) = free_ports(1)
    with Health(HealthAddress("127.0.0.1", port)) as health:
        health.beat(ready=True)
        assert (asked(port, ""), asked(port, "ready"), asked(port, "other")) == (True, True, None)
        with pytest.raises(InputError, match="--health-port"), Health(health._address):
            pass
    assert asked(port, "") is None


def mount(origin: ServerHome, keys: Path) -> None:
    """Lays keys out as the manifests mount them."""
    own = [origin.ca, origin.certificate, origin.key, origin.token_file]
    (keys / "server").mkdir(parents=True)
    for path in own:
        shutil.copy(path, keys / "server")
    shutil.copytree(origin.clients, keys / "clients")


@pytest.fixture
def origin(tmp_path: Path) -> ServerHome:
    """The operator's own folder, in which keys are made."""
    home = ServerHome(tmp_path / "origin")
    create_home(home, [], 365)
    add_client(home, "alice", make_node_key("alice").public)
    return home


def test_mounted_keys_make_a_server_and_are_only_read(origin: ServerHome, tmp_path: Path) -> None:
    mount(origin, tmp_path / "keys")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "keys").rglob("*")}
    home = ServerHome(tmp_path / "state", tmp_path / "keys")
    with started(home, "--keys", str(home.keys)) as server:
        wait_for(lambda: "registered alice" in server.output.read_text())
        add_client(origin, "bob", make_node_key("bob").public)
        shutil.copy(origin.clients / "bob.pub", home.clients)  # as kubelet would
        wait_for(lambda: "registered bob" in server.output.read_text())
        remove_client(origin, "alice")
        (home.clients / "alice.pub").unlink()
        wait_for(lambda: "unregistered 1" in server.output.read_text())
        half = home.clients / "carol.pub"
        half.write_text("ssh-")
        wait_for(lambda: "trying again" in server.output.read_text())
        half.write_bytes(make_node_key("carol").public)
        wait_for(lambda: "registered carol" in server.output.read_text())
    names = {path.name for path in home.path.iterdir()}
    assert not names & {"ca.pem", "server.key", "operator.token", "clients"}
    assert all(
        path.stat().st_mtime_ns == t
        for path, t in before.items()
        if path.is_file() and path.exists()
    )


@pytest.mark.slow
def test_a_mounted_certificate_is_shown_when_nobody_is_at_work(
    origin: ServerHome, tmp_path: Path
) -> None:
    mount(origin, tmp_path / "keys")
    home = ServerHome(tmp_path / "state", tmp_path / "keys")
    with started(home, "--keys", str(home.keys), "--external-executor") as server:
        secret = home.superexec_secret.read_bytes()
        renew_certificate(origin, ["fleet.example.org"], 30)
        for path in (origin.key, origin.certificate):
            shutil.copy(path, tmp_path / "keys/server")
        wait_for(lambda: server.output.read_text().count("listening on") == 2, 60)
        shown = ssl.get_server_certificate(("127.0.0.1", server.port))
        assert shown.strip() == origin.certificate.read_text().strip()
        assert home.superexec_secret.read_bytes() != secret  # by which an executor knows


def test_a_folder_without_keys_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ("--state", str(tmp_path / "state"), "--keys", str(tmp_path))
    assert run(["server", "start", *state]) == 2
    assert "expected server/ca.pem" in capsys.readouterr().err


@contextlib.contextmanager
def executing(server: Server) -> Iterator[tuple[subprocess.Popen[bytes], Path, int]]:
    """Runs the other container of a server's pod."""
    (port,) = free_ports(1)
    output = server.home.path.with_suffix(".executor")
    state = ("--state", str(server.home.path), "--ca", str(server.home.ca))
    ports = ("--port", str(server.port), "--health-port", str(port))
    with output.open("wb") as out:
        process = subprocess.Popen(
            [WILDFLOWER, "server", "execute", *state, *ports], stdout=out, stderr=out
        )
    try:
        yield process, output, port
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_a_run_survives_its_superlink_and_its_submitter(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "server")
    create_home(home, [], 365)
    pair = make_node_key("gateway")
    add_client(home, "gateway", pair.public)
    key, out = tmp_path / "client.key", tmp_path / "run"
    key.write_bytes(pair.private)
    (health,) = free_ports(1)
    options = ("--health-port", str(health))
    with started(home, "--external-executor", *options) as server, executing(server) as executor:
        wait_for(lambda: asked(executor[2], "ready"))
        wait_for(lambda: asked(health, "ready"))
        address = ("--server", f"127.0.0.1:{server.port}")
        (own,) = free_ports(1)
        access = ("--key", str(key), "--ca", str(home.ca), "--health-port", str(own))
        with device(tmp_path, *address, *access, "--data", "digits", "--hosts", "0-1"):
            wait_for(lambda: asked(own, "ready"), 120)
            settings = (
                "data.clients=2",
                "stages.train.clients_per_round=2",
                "stages.train.rounds=6",
            )
            config = (str(ROOT / "examples/digits.toml"), "--once", "--out", str(out))
            command = [WILDFLOWER, "submit", *config, *address, "--credentials", str(home.path)]
            command += [word for setting in settings for word in ("-s", setting)]
            with subprocess.Popen(command) as first:
                wait_for(lambda: any(home.runs.glob("*/metrics.jsonl")), 120)
                first.kill()
            pid = server.superlink()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert subprocess.run(command, check=False, timeout=240).returncode == 0
        assert "the SuperLink was started anew" in executor[1].read_text()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 6
    other = subprocess.run([*command, "-s", "seed=7"], check=False, stderr=subprocess.PIPE)
    assert other.returncode == 2
    assert b"another config" in other.stderr
