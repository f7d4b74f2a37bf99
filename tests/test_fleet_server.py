"""A fleet's server as a process: its doors, its clients, and what ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.cli import run
from deploy.fleet.certificates import Signed, make_certificate
from deploy.fleet.connection import (
    TOKEN_HEADER,
    Connection,
    answered,
    open_control,
    open_http,
    read_token,
)
from deploy.fleet.disk import bound_log
from deploy.fleet.home import ServerHome, create_home
from deploy.fleet.node_keys import make_node_key
from deploy.fleet.registry import add_client, describe_clients, remove_client
from deploy.fleet.run_files import GrowingFile, run_file
from deploy.fleet.superexec import Launcher
from deploy.fleet.superlink import Doors
from server.fleet_register import Register, Registered, read_register, write_register
from shared_models.client_states import FILE_NAME
from shared_models.errors import InputError, ServerError
from shared_models.files import locked

WILDFLOWER = str(Path(sys.executable).parent / "wildflower")


@dataclass
class Server:
    """A server that was started from the command line."""

    home: ServerHome
    process: subprocess.Popen[bytes]
    port: int
    output: Path

    def connection(self) -> Connection:
        return self.connection_with(read_token(self.home.token_file))

    def connection_with(self, token: str | None) -> Connection:
        return Connection(f"127.0.0.1:{self.port}", self.home.ca, token)

    def superlink(self) -> int | None:
        found: int | None = json.loads(self.home.notes.read_text()).get("superlink_pid")
        return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def of_state(home: ServerHome) -> set[int]:
    """Every process that was started for a state folder: all of them name it."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and any(str(home.path) in word for word in process.cmdline()):
                found.add(process.pid)
    return found


@contextlib.contextmanager
def started(home: ServerHome, *options: str) -> Iterator[Server]:
    (port,) = free_ports(1)
    output = home.path.with_suffix(".out")
    command = [WILDFLOWER, "server", "start", "--state", str(home.path), "--port", str(port)]
    with output.open("wb") as out:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=subprocess.STDOUT)
    server = Server(home, process, port, output)
    try:
        wait_for(lambda: b"listening" in output.read_bytes() or process.poll() is not None)
        assert process.poll() is None, output.read_text()
        yield server
    finally:
        process.terminate()
        process.wait(30)
        for pid in of_state(home):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = ServerHome(tmp_path_factory.mktemp("fleet") / "state")
    create_home(home, ["fleet.example.org"], 365)
    add_client(home, "alice", make_node_key("alice").public)
    with started(home) as found:
        yield found


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that has to be refused: exit code 2, and one line, which is returned."""

    def run_refused(*arguments: str) -> str:
        assert run(arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        return told

    return run_refused


def test_only_who_has_the_token_controls_the_server(server: Server) -> None:
    from flwr.proto.control_pb2 import ListNodesRequest

    for token in (None, "wrong"):
        with (
            pytest.raises(InputError, match="token is missing or wrong"),
            answered(connection := server.connection_with(token)),
            open_control(connection) as control,
        ):
            control.ListNodes(ListNodesRequest())
    with open_control(server.connection()) as control:
        names = [node.name for node in control.ListNodes(ListNodesRequest()).nodes_info]
    assert "alice" in names


def acquire_task(server: Server, secret: bytes | None) -> Any:
    """Asks Flower's Runtime API for a task, from this machine, as SuperExec does."""
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supercore.interceptors.http.superexec_auth import SuperExecAuthHttpInterceptor
    from flwr.supercore.runtime.runtime_http_client import RuntimeHttpClient

    interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    if secret is not None:
        methods = frozenset({"/flwr.proto.Runtime/AcquireTask"})
        interceptors += [
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=methods)
        ]
    client = RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{server.port}",
        insecure=False,
        root_certificates=server.home.ca.read_bytes(),
        interceptors=interceptors,
    )
    with contextlib.closing(client):
        return client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))


def test_another_user_of_the_server_s_machine_is_given_no_task(server: Server) -> None:
    for secret in (None, b"wrong"):
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            acquire_task(server, secret)
    assert server.home.superexec_secret.stat().st_mode & 0o777 == 0o600
    answer = acquire_task(server, server.home.superexec_secret.read_bytes())
    assert not answer.HasField("task")  # there is none, but it would have been given


@contextlib.contextmanager
def launching(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> Iterator[Launcher]:
    """Yields what starts `code` in the place of ServerApps, which end with the test."""
    app = folder / "flwr-serverapp"
    app.write_text(f"#!{sys.executable}\n{code}")
    app.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    launcher = Launcher(folder / "flower")
    before = psutil.Process().children()
    try:
        yield launcher
    finally:
        for own in set(psutil.Process().children()) - set(before):
            own.kill()
            own.wait(10)
        launcher.reconcile()


def app_with(token: str) -> ExecutionSpec:
    return ExecutionSpec(
        task_type=TaskType.SERVER_APP,
        runtime_api_address="127.0.0.1:1",
        token=token,
        insecure=False,
        root_certificates_path="ca.pem",
        runtime_dependency_install=False,
        parent_pid=os.getpid(),
        suppress_output=True,
        task_id=1,
    )


APP_THAT_TELLS = """
import sys, time
from pathlib import Path
from flwr.common.args import try_obtain_flwr_app_token
from flwr.superlink.cli.flwr_serverapp import _parse_args_run_flwr_serverapp
token = try_obtain_flwr_app_token(_parse_args_run_flwr_serverapp().parse_args())
half = Path(__file__).with_name("half")
half.write_text(" ".join([token, "by", *sys.argv]))
half.rename(half.with_name("told"))
time.sleep(60)
"""


def test_an_app_s_token_is_on_no_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with launching(tmp_path, monkeypatch, APP_THAT_TELLS) as launcher:
        assert launcher.launch(app_with("abc123")).status == "accepted"
        wait_for((tmp_path / "told").exists)
    read, _, line = (tmp_path / "told").read_text().partition(" by ")
    assert read == "abc123"
    assert "--root-certificates ca.pem" in line
    assert "abc123" not in line


def test_old_bundles_go_when_an_app_starts_and_no_other_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.fleet.superexec.BUNDLES_BYTES", 1500)
    monkeypatch.setattr("deploy.fleet.superexec._TIDY_S", 0.0)
    apps = tmp_path / "flower" / "apps"

    def add(name: str, age_s: float) -> None:
        (apps / name).mkdir(parents=True)
        (apps / name / "app.py").write_bytes(b"x" * 1000)
        os.utime(apps / name, (time.time() - age_s,) * 2)

    add("old", 20)
    add("new", 10)
    with launching(tmp_path, monkeypatch, "import time; time.sleep(60)") as launcher:
        launcher.launch(app_with("first"))
        assert [path.name for path in apps.iterdir()] == ["new"]
        add("newer", 0)
        launcher.launch(app_with("second"))  # the first may read from what is old now
        assert sorted(path.name for path in apps.iterdir()) == ["new", "newer"]


def test_a_client_that_was_added_before_the_start_is_registered(server: Server) -> None:
    (alice,) = (row for row in describe_clients(server.home) if row["name"] == "alice")
    assert (alice["status"], alice["last_seen"]) == ("created", None)
    assert int(alice["node_id"]) > 0


def test_clients_come_and_go_while_it_runs(server: Server, tmp_path: Path) -> None:
    at = ["--state", str(server.home.path)]
    assert run(["server", "add-client", "bob", *at, "--out", str(tmp_path / "bob")]) == 0
    key = tmp_path / "bob.pub"
    key.write_bytes((server.home.clients / "bob.pub").read_bytes())
    rows = {row["name"]: row["status"] for row in describe_clients(server.home)}
    assert rows == {"alice": "created", "bob": "created"}
    assert remove_client(server.home, "bob") is not None
    assert [row["name"] for row in describe_clients(server.home)] == ["alice"]
    # Flower never takes a key again: said, and nothing is left behind.
    assert run(["server", "add-client", "bob", *at, "--public-key", str(key)]) == 2
    assert [row["name"] for row in describe_clients(server.home)] == ["alice"]


def test_every_path_but_the_fleet_s_own_asks_for_the_token(server: Server) -> None:
    with open_http(server.connection_with(None)) as http:
        for path in ("/docs", "/openapi.json", "/", "/v1/wildflower/runs", "/v1/control/x"):
            assert http.get(path).status_code == 401, path
        assert http.get("/health").status_code == 200
        assert http.post("/v1/runtime/acquire-task").status_code == 415  # from here: let in
        forwarded = {"X-Forwarded-For": "127.0.0.1"}
        assert http.post("/v1/runtime/acquire-task", headers=forwarded).status_code == 403
        assert http.post("/v1/fleet/pull-messages").status_code == 415


def test_a_run_s_files_are_served_and_nothing_else(server: Server) -> None:
    folder = server.home.runs / "run-1"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "export").mkdir()
    shown = {"config.toml": b"name = 1\n", "events.jsonl": b"0123456789", "export/a.onnx": b"x"}
    secret = ("checkpoints/1.ckpt", FILE_NAME, f"{FILE_NAME}-wal", ".half.1.tmp")
    for name, content in {**shown, **dict.fromkeys(secret, b"secret")}.items():
        (folder / name).write_bytes(content)
    (folder / "link").symlink_to(server.home.ca_key)
    (folder / "up").symlink_to(server.home.path)
    (folder / "summary.json").write_text('{"status": "done"}')
    base = "/v1/wildflower/runs"
    with open_http(server.connection()) as http:
        listed = {f["path"]: f["bytes"] for f in http.get(f"{base}/run-1/files").json()}
        assert listed == {**{k: len(v) for k, v in shown.items()}, "summary.json": 18}
        size = sum(listed.values())
        told = {"run": "run-1", "status": "done", "bytes": size}
        assert http.get(base).json() == [told]
        with locked(folder / "config.toml"):  # as a run does that is going on
            assert http.get(base).json() == [{**told, "status": "running"}]
        file = f"{base}/run-1/files/events.jsonl"
        assert http.get(file).content == shown["events.jsonl"]
        part = http.get(file, headers={"Range": "bytes=4-"})
        assert (part.status_code, part.content) == (206, b"456789")
        assert http.get(file, headers={"Range": "bytes=10-"}).status_code == 416
        others = (*secret, "link", "up/ca.key", "%2e%2e/%2e%2e/ca.key", "..%2f..%2fca.key", "", "/")
        for name in others:
            assert http.get(f"{base}/run-1/files/{name}").status_code == 404, name
        for name in ("none", "%2e%2e", "..%2fclients", "a" * 81):
            assert http.get(f"{base}/{name}/files").status_code == 404, name


def test_a_path_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").touch()
    for name in ("../secret", "a/../../secret", "./../secret", "/etc/passwd", "\0", ".", ".."):
        assert run_file(tmp_path / "run", name) is None, name


def test_a_file_that_grows_meanwhile_is_sent_as_long_as_announced(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"a" * 100_000)
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        if not sent:
            path.write_bytes(b"a" * 300_000)
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(GrowingFile(path)(scope, receive, send))
    announced = dict(sent[0]["headers"])[b"content-length"]
    assert announced == b"100000"
    assert sum(len(message["body"]) for message in sent[1:]) == 100_000


def test_the_log_is_bounded_while_it_is_written_to(tmp_path: Path) -> None:
    log = tmp_path / "superlink.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old" * 10)
        bound_log(log, largest=100)
        assert log.stat().st_size == 30
        bound_log(log, largest=10)
        writer.write(b"new")
    assert log.read_bytes() == b"new"
    assert (tmp_path / "superlink.log.1").read_bytes() == b"old" * 10


def test_it_is_started_once(server: Server, refused: Callable[..., str]) -> None:
    told = refused("server", "start", "--state", str(server.home.path))
    assert f"process {server.process.pid} runs a server" in told


def test_no_secret_was_told(server: Server) -> None:
    told = server.output.read_text() + server.home.log.read_text() + server.home.notes.read_text()
    assert "listening on https://" in told
    assert read_token(server.home.token_file) not in told
    assert "PRIVATE KEY" not in told
    for path in server.home.path.glob("*.key"):
        assert path.read_text().splitlines()[1] not in told
    secret = server.home.superexec_secret.read_bytes()
    assert secret not in server.home.log.read_bytes()
    assert secret.hex() not in told
    environment = psutil.Process(server.superlink()).environ()
    assert environment["WILDFLOWER_STATE"] == str(server.home.path)
    assert read_token(server.home.token_file) not in environment.values()


@pytest.mark.slow
def test_a_superlink_that_is_killed_comes_back_with_what_it_knew(server: Server) -> None:
    before = server.superlink()
    (alice,) = (row["node_id"] for row in describe_clients(server.home))
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: server.superlink() not in (None, before))
    assert [row["node_id"] for row in describe_clients(server.home)] == [alice]
    assert "the SuperLink ended (SIGKILL); it is started anew in 1 s" in server.output.read_text()
    assert before not in of_state(server.home)


def superexecs(home: ServerHome) -> set[int]:
    """Returns which SuperExecs run for a state folder."""
    found = set()
    for pid in of_state(home):
        with contextlib.suppress(psutil.Error):
            if "deploy.fleet.superexec" in psutil.Process(pid).cmdline():
                found.add(pid)
    return found


@pytest.mark.slow
def test_a_superexec_that_is_killed_comes_back_and_the_superlink_with_it(server: Server) -> None:
    wait_for(lambda: len(superexecs(server.home)) == 1)
    (killed,) = superexecs(server.home)
    before = server.superlink()
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: server.superlink() not in (None, before))
    wait_for(lambda: len(superexecs(server.home)) == 1)
    assert "the SuperExec ended (SIGKILL); it is started anew in" in server.output.read_text()
    assert not {killed, before} & of_state(server.home)


@pytest.mark.slow
def test_a_renewed_certificate_is_shown_without_a_restart_by_hand(home: ServerHome) -> None:
    def shown(port: int) -> bytes:
        context = ssl.create_default_context(cafile=home.ca)
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            return wrapped.getpeercert(binary_form=True) or b""

    with started(home) as server:
        before, pid = shown(server.port), server.superlink()
        home.certificate.write_text("half")
        wait_for(lambda: "that was there before is kept" in server.output.read_text())
        assert (shown(server.port), server.superlink()) == (before, pid)
        assert run(["server", "init", "--state", str(home.path), "--renew"]) == 0
        wait_for(lambda: server.superlink() not in (None, pid))
        assert shown(server.port) != before
        assert "its certificate was renewed; it is started anew in 1 s" in (
            server.output.read_text()
        )


@pytest.mark.slow
def test_it_listens_on_ipv6_too(home: ServerHome) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with started(home, "--host", "::") as server:
        assert "listening on https://[::]:" in server.output.read_text()


def test_a_state_that_is_a_file_is_told_as_such(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (file := tmp_path / "state").touch()
    for command in (["init"], ["init", "--renew"], ["start"], ["list-clients"]):
        told = refused("server", *command, "--state", str(file))
        assert told.startswith(f"error: --state {file}: it is a file; "), command
    told = refused("server", "init", "--state", str(file / "below"))
    assert told.startswith(f"error: --state {file / 'below'}: {file} is a file; ")


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    home = ServerHome(tmp_path / "state")
    create_home(home, [], 365)
    return home


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_all_that_it_started_ends_with_it(
    number: signal.Signals, code: int, home: ServerHome
) -> None:
    with started(home) as server:
        wait_for(lambda: len(of_state(home)) == 3)  # we, the SuperLink and SuperExec
        server.process.send_signal(number)
        assert server.process.wait(20) == code
        wait_for(lambda: not of_state(home), 0 if code >= 0 else 10)
        assert home.running() is None


@pytest.mark.slow
def test_without_tls_only_here_and_with_the_same_token(home: ServerHome) -> None:
    (health_port,) = free_ports(1)
    options = ("--insecure", "--host", "127.0.0.1", "--health-port", str(health_port))
    write_register(home.path, Register({7: Registered("of a time with keys", (0,))}))
    with started(home, *options) as server:
        assert read_register(home.path) == Register()
        with grpc.insecure_channel(f"127.0.0.1:{health_port}") as channel:
            told = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert told.status == health_pb2.HealthCheckResponse.SERVING
        token = read_token(home.token_file)
        for given, status in ((token, 200), ("wrong", 401)):
            with open_http(Connection(f"127.0.0.1:{server.port}", None, given)) as http:
                assert http.get("/v1/wildflower/runs").status_code == status
        assert "no node keys" in server.output.read_text()


def test_what_cannot_be_started_is_refused_in_one_line(
    home: ServerHome, tmp_path: Path, refused: Callable[..., str]
) -> None:
    start = ("server", "start", "--state")
    at = (*start, str(home.path))
    assert "wildflower server init" in refused(*start, str(tmp_path / "none"))
    assert "may only listen on this machine" in refused(*at, "--insecure", "--host", "0.0.0.0")  # noqa: S104
    assert "may only listen on this machine" in refused(*at, "--insecure")
    assert "--renew --name 192.0.2.7" in refused(*at, "--host", "192.0.2.7")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = refused(*at, "--host", "127.0.0.1", "--port", port)
    assert f"127.0.0.1:{port}: cannot be listened on" in told


def test_an_expired_certificate_is_named_with_its_cure(
    home: ServerHome, refused: Callable[..., str]
) -> None:
    authority = Signed(home.ca.read_bytes(), home.ca_key.read_bytes())
    late = make_certificate(authority, ["localhost"], days=-2)
    home.certificate.write_bytes(late.certificate)
    home.key.write_bytes(late.key)
    told = refused("server", "start", "--state", str(home.path))
    assert "expired on" in told
    assert "--renew" in told


def test_a_key_that_is_not_the_certificate_s_is_named(
    home: ServerHome, refused: Callable[..., str]
) -> None:
    home.key.write_bytes(home.ca_key.read_bytes())
    told = refused("server", "start", "--state", str(home.path))
    assert "is not the key of server.pem" in told


def knock(path: str, client: tuple[str, int] | None, headers: dict[str, str] | None = None) -> int:
    """Returns the status of a request that comes from an address; 299 when it was let in."""
    answers: list[dict[str, Any]] = []

    async def inside(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299})

    async def send(message: Any) -> None:
        answers.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "path": path, "client": client, "headers": raw}
    scope["server"] = ("192.0.2.1", 8000)
    asyncio.run(Doors(inside, "right")(scope, receive, send))
    return int(answers[0]["status"])


def test_the_runtime_s_door_is_open_to_this_machine_alone() -> None:
    path = "/v1/runtime/acquire-task"
    for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "192.0.2.1"):
        assert knock(path, (host, 1)) == 299, host
        assert knock(path, (host, 1), {"X-Forwarded-For": "127.0.0.1"}) == 403, host
    for client in (("192.0.2.9", 1), ("10.0.0.1", 1), ("localhost", 1), ("", 0), None):
        assert knock(path, client) == 403
        assert knock(path, client, {TOKEN_HEADER: "right"}) == 403


def test_a_token_opens_from_everywhere_and_a_wrong_one_from_nowhere() -> None:
    for host in ("127.0.0.1", "192.0.2.9"):
        for path in ("/v1/control/start-run", "/v1/wildflower/runs", "/v1/fleet", "/V1/FLEET/x"):
            assert knock(path, (host, 1)) == 401
            assert knock(path, (host, 1), {TOKEN_HEADER: "rightly"}) == 401
            assert knock(path, (host, 1), {TOKEN_HEADER: "right"}) == 299
        assert knock("/v1/fleet/pull-messages", (host, 1)) == 299


def test_a_stranger_s_certificate_is_not_talked_to(server: Server, home: ServerHome) -> None:
    stranger = Connection(f"127.0.0.1:{server.port}", home.ca, "token")
    with (
        pytest.raises(InputError, match="its certificate is not trusted"),
        answered(stranger),
        open_http(stranger) as http,
    ):
        http.get("/health")
    nobody = Connection(f"127.0.0.1:{free_ports(1)[0]}", home.ca, "token")
    with (
        pytest.raises(ServerError, match="does not answer"),
        answered(nobody),
        open_http(nobody) as http,
    ):
        http.get("/health")


def test_only_modern_tls_is_spoken(server: Server) -> None:
    context = ssl.create_default_context(cafile=server.home.ca)
    with (
        socket.create_connection(("127.0.0.1", server.port)) as plain,
        context.wrap_socket(plain, server_hostname="fleet.example.org") as wrapped,
    ):
        assert wrapped.version() == "TLSv1.3"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{server.port}/health")


def test_descendants_are_ended_wherever_they_went() -> None:
    code = """
import os, subprocess, sys, time
from deploy.fleet.processes import adopt_orphans, end_descendants, reap
adopt_orphans()
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {deaf!r}], " \\
        "start_new_session=True)"
subprocess.run([sys.executable, "-c", start], check=True)  # its child is an orphan now
import psutil
(orphan,) = psutil.Process().children()
time.sleep(0.5)
end_descendants(grace_s=0.5)
assert reap() == {orphan.pid: -9}, "SIGKILL, as it did not listen"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
