"""A device as a process: it goes on trying, says what is wrong, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from clients.warm.logs import open_log
from deploy.cli import run
from deploy.cli.client import folder_name, hosted
from deploy.fleet.certificates import Signed, make_certificate
from deploy.fleet.client import Backoff
from deploy.fleet.connection import Connection
from deploy.fleet.disk import Tail, bound_log, prune_apps, size_bytes
from deploy.fleet.home import ServerHome, create_home
from deploy.fleet.node_keys import make_node_key
from deploy.fleet.probe import fault_of
from deploy.fleet.registry import add_client
from deploy.fleet.stopping import Stop
from shared_models.errors import InputError
from tests.test_fleet_credentials import listening
from tests.test_fleet_server import started

WILDFLOWER = str(Path(sys.executable).parent / "wildflower")
MB = 2**20


@dataclass
class Client:
    """A client that was started from the command line, and what it says."""

    process: subprocess.Popen[bytes]
    output: Path
    seen: set[psutil.Process]

    def said(self) -> str:
        return self.output.read_text()

    def family(self) -> set[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        return {process for process in self.seen if lives(process)}

    def node(self) -> psutil.Process | None:
        return next((p for p in self.family() if "deploy.fleet.supernode" in words_of(p)), None)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@contextlib.contextmanager
def device(folder: Path, *options: str) -> Iterator[Client]:
    command = [WILDFLOWER, "client", "--state", str(folder / "state"), *options]
    output = folder / f"out-{time.monotonic_ns()}"
    with output.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    client = Client(process, output, set())
    try:
        yield client
    finally:
        client.family()
        process.terminate()
        try:
            process.wait(30)
        finally:
            for left in client.family():
                left.kill()


@contextlib.contextmanager
def silence() -> Iterator[str]:
    """A server that takes connections and says nothing: as good as none, but it can be reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def own(folder: Path) -> tuple[str, ...]:
    np.savez(folder / "mine.npz", x=np.zeros((4, 8, 8)), y=np.arange(4))
    return ("--data", str(folder / "mine.npz"), "--client-id", "7")


def nobody() -> str:
    with silence() as address:
        return address


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_without_a_server_it_goes_on_trying_and_ends_when_told(
    tmp_path: Path, number: int, code: int
) -> None:
    address = nobody()
    with device(tmp_path, "--server", address, "--insecure", *own(tmp_path)) as client:
        wait_for(lambda: "cannot be reached" in client.said())
        time.sleep(1.5)  # it has tried again by now
        assert client.said().count(f"{address} cannot be reached: connection refused") == 1
        kept = (tmp_path / "state" / "client.log").read_text().splitlines()
        assert [line.split(" ", 1)[1] for line in kept] == client.said().splitlines()[1:]
        assert client.family()
        client.process.send_signal(number)
        assert client.process.wait(20) == code
        assert client.family() == set()
        assert "Traceback" not in client.said()


@pytest.mark.parametrize("is_early", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_all_that_it_starts_ends_with_it_even_when_it_is_killed(
    tmp_path: Path, *, is_early: bool
) -> None:
    log = tmp_path / "state" / "supernode.log"
    with (
        silence() as address,
        device(tmp_path, "--server", address, "--insecure", *own(tmp_path)) as client,
    ):
        wait_for(lambda: len(client.family()) >= 3)  # a trainer, a SuperNode, a SuperExec
        wait_for(lambda: is_early or "Uvicorn running" in log.read_text())
        assert len(client.family()) == 3
        client.process.kill()
        wait_for(lambda: not client.family(), 20)


@pytest.mark.slow
def test_a_supernode_that_dies_is_started_anew_and_the_trainer_stays(tmp_path: Path) -> None:
    log = tmp_path / "state" / "supernode.log"
    with (
        silence() as address,
        device(tmp_path, "--server", address, "--insecure", *own(tmp_path)) as client,
    ):
        wait_for(lambda: "Uvicorn running" in log.read_text() if log.exists() else False)
        first = client.node()
        trainer = {p for p in client.family() if "clients.warm.worker" in words_of(p)}
        assert first is not None
        first.kill()
        wait_for(lambda: client.node() not in {None, first})
        assert trainer <= client.family()
        assert "the SuperNode died (signal 9); trying again" in client.said()


@pytest.mark.slow
def test_its_files_are_its_owner_s_and_one_client_has_them(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with (
        silence() as address,
        device(tmp_path, "--server", address, "--insecure", *own(tmp_path)) as client,
    ):
        wait_for(client.node)
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        secrets = ("superexec.secret", "trainer.sock", "lock")
        for name in (*secrets, "client.log", "trainer.log", "supernode.log"):
            assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
        with device(tmp_path, "--server", address, "--insecure", *own(tmp_path)) as second:
            assert second.process.wait(30) == 2
            assert "another client runs on this folder" in second.said()
        assert client.process.poll() is None


@pytest.mark.slow
def test_data_that_cannot_be_read_ends_it_at_once_in_one_line(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "none.npz"), "--client-id", "7")
    with device(tmp_path, "--server", nobody(), "--insecure", *data) as client:
        assert client.process.wait(60) == 2
        assert client.said().splitlines()[-1].endswith("none.npz: there is no such file")
        assert "Traceback" not in client.said()
        assert client.family() == set()


KILLED_ONCE = """
import os, pathlib, signal
import numpy as np

def load(client_id):
    mark = pathlib.Path("killed")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros((4, 8, 8)), np.arange(4)
"""


def test_a_trainer_that_is_killed_while_it_reads_its_data_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sensors.py").write_text(KILLED_ONCE)
    monkeypatch.chdir(tmp_path)
    data = ("--data", "sensors:load", "--client-id", "7")
    with device(tmp_path, "--server", nobody(), "--insecure", *data) as client:
        wait_for(lambda: "cannot be reached" in client.said())
        assert "the trainer died (signal 9); trying again" in client.said()


def test_pauses_grow_to_ten_seconds_and_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    stop = Stop()
    monkeypatch.setattr(stop, "within", waited.append)
    backoff = Backoff(10.0)
    for _ in range(8):
        backoff.pause(stop)
    assert waited[0] <= 1
    assert all(5 <= pause <= 10 for pause in waited[4:])
    assert len(set(waited)) == len(waited)


@pytest.mark.slow
def test_a_server_of_another_authority_is_named(tmp_path: Path) -> None:
    home, mine = fleet(tmp_path / "home"), fleet(tmp_path / "mine")
    key = tmp_path / "client.key"
    key.write_bytes(make_node_key().private)
    key.chmod(0o600)
    with listening(home.certificate, home.key) as port:
        access = ("--server", f"127.0.0.1:{port}", "--key", str(key), "--ca", str(mine.ca))
        with device(tmp_path, *access, *own(tmp_path)) as client:
            wait_for(lambda: "trying again" in client.said())
            assert "certificate is not signed by this device's ca.pem" in client.said()
            assert client.node() is None  # nothing is said to such a server


def fleet(path: Path) -> ServerHome:
    home = ServerHome(path)
    create_home(home, [], 365)
    return home


def shown(home: ServerHome, folder: Path, names: list[str], days: int) -> tuple[Path, Path]:
    authority = Signed(home.ca.read_bytes(), home.ca_key.read_bytes())
    made = make_certificate(authority, names, days)
    certificate, key = folder / "shown.pem", folder / "shown.key"
    certificate.write_bytes(made.certificate)
    key.write_bytes(made.key)
    return certificate, key


@pytest.mark.parametrize(
    ("names", "days", "reason"),
    [
        (["127.0.0.1"], -1, "the server's certificate has expired"),
        (["fleet.example.org"], 30, "certificate is for other names than 127.0.0.1"),
    ],
)
def test_a_certificate_that_is_unfit_is_named(
    tmp_path: Path, names: list[str], days: int, reason: str
) -> None:
    home = fleet(tmp_path / "home")
    with listening(*shown(home, tmp_path, names, days)) as port:
        assert reason in str(fault_of(Connection(f"127.0.0.1:{port}", home.ca, None)))


def test_a_certificate_of_another_authority_is_named(tmp_path: Path) -> None:
    home, mine = fleet(tmp_path / "home"), fleet(tmp_path / "mine")
    with listening(home.certificate, home.key) as port:
        fault = str(fault_of(Connection(f"127.0.0.1:{port}", mine.ca, None)))
    assert "certificate is not signed by this device's ca.pem" in fault


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with silence() as address:
        fault = fault_of(Connection(address, fleet(tmp_path / "home").ca, None), patience_s=0.2)
        assert fault == f"{address} did not answer within 0.2 s"


def test_a_good_certificate_is_no_fault_and_a_server_without_tls_is_one(tmp_path: Path) -> None:
    home = fleet(tmp_path / "home")
    with listening(home.certificate, home.key) as port:
        assert fault_of(Connection(f"127.0.0.1:{port}", home.ca, None)) is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        answering(server)
        assert fault_of(Connection(address, home.ca, None)) == f"{address} does not speak TLS"
        answering(server)
        assert fault_of(Connection(address, None, None)) is None


def test_who_comes_without_tls_to_a_server_that_has_it_is_told_what_to_give(tmp_path: Path) -> None:
    home = fleet(tmp_path / "home")
    with listening(home.certificate, home.key) as port:
        fault = str(fault_of(Connection(f"127.0.0.1:{port}", None, None)))
    assert "hangs up on who comes without TLS; leave out --insecure and give" in fault


def answering(server: socket.socket) -> None:
    """Answers the next connection as a web server without TLS does."""

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()


@pytest.mark.slow
def test_a_key_is_refused_until_it_is_registered_and_the_node_stays_the_same(
    tmp_path: Path,
) -> None:
    home = fleet(tmp_path / "fleet")
    pair = make_node_key("watch-1")
    key = tmp_path / "client.key"
    key.write_bytes(pair.private)
    key.chmod(0o600)
    with started(home) as server:
        access = ("--server", f"127.0.0.1:{server.port}", "--key", str(key), "--ca", str(home.ca))
        with device(tmp_path, *access, *own(tmp_path)) as client:
            wait_for(lambda: "its key is not registered there" in client.said())
            add_client(home, "watch-1", pair.public)
            wait_for(lambda: "connected to" in client.said(), 90)
            node = client.node()
            assert node is not None
            node.kill()
            wait_for(lambda: ids_in(tmp_path / "state" / "supernode.log") >= 2, 90)
            assert len(set(found_ids(tmp_path / "state" / "supernode.log"))) == 1


def found_ids(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines()
    return [line.rsplit(maxsplit=1)[-1] for line in lines if "SuperNode ID" in line]


def ids_in(log: Path) -> int:
    return len(found_ids(log))


def test_the_newest_bundle_is_kept_and_older_ones_make_room(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old", "oldest")):
        bundle = tmp_path / "apps" / name
        bundle.mkdir(parents=True)
        (bundle / "code.py").write_bytes(bytes(MB))
        os.utime(bundle, (1e9 - age, 1e9 - age))
    prune_apps(tmp_path, 2 * MB)
    assert {path.name for path in (tmp_path / "apps").iterdir()} == {"new", "old"}
    prune_apps(tmp_path, 0)
    assert {path.name for path in (tmp_path / "apps").iterdir()} == {"new"}


def test_a_log_begins_anew_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as writer:
        for _ in range(5):
            writer.write(bytes(MB))
            bound_log(log, 2 * MB)
            assert size_bytes(tmp_path) <= 2 * 3 * MB
        writer.write(b"the end")
    assert log.read_bytes().endswith(b"the end")


def test_what_is_kept_of_a_log_that_grew_at_once_is_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = b"".join(b"%07d\n" % number for number in range(1000))
    log.write_bytes(lines)
    bound_log(log, len(lines))
    assert log.read_bytes() == lines  # it fits
    bound_log(log, 900, kept=800)
    assert log.stat().st_size == 0
    assert (tmp_path / "log.1").read_bytes() == lines[-800:]


def test_who_follows_a_log_that_begins_anew_reads_every_byte_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    tail, said = Tail(log), ""
    with log.open("ab", buffering=0) as writer:
        for number in range(1000):
            writer.write(b"%d\n" % number)
            if number % 7 == 0:
                said += tail.read()
            if number % 11 == 0:
                said += tail.bound(200, kept=10)
    assert log.stat().st_size <= 250
    assert (said + tail.read()).split() == [str(number) for number in range(1000)]
    log.write_text("of another\n")  # somebody else began it anew
    assert tail.read() == "of another\n"


def test_logs_are_their_owner_s_alone_and_so_are_their_older_halves(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("from an older version")
    log.chmod(0o644)
    with open_log(log) as file:
        file.write(b", and on")
    assert log.read_text() == "from an older version, and on"
    assert bound_log(log, 1)
    for path in (log, tmp_path / "log.1"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_is_measured_while_its_files_go_away(tmp_path: Path) -> None:
    program = (
        "import pathlib, shutil, sys\n"
        "while True:\n"
        "    for number in range(30):\n"
        "        folder = pathlib.Path(sys.argv[1], str(number))\n"
        "        folder.mkdir()\n"
        "        (folder / 'file').write_bytes(b'1234')\n"
        "    for number in range(30):\n"
        "        shutil.rmtree(pathlib.Path(sys.argv[1], str(number)))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as busy:
        try:
            wait_for(lambda: size_bytes(tmp_path))
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                assert 0 <= size_bytes(tmp_path) <= 30 * 4
        finally:
            busy.kill()


def test_a_device_s_clients_are_named_by_an_id_or_by_ranges() -> None:
    assert hosted(7, None) == (7,)
    assert hosted(None, "20-22, 3,7-7") == (3, 7, 20, 21, 22)
    assert hosted(None, "0-99999")[::99_999] == (0, 99_999)


def test_a_gateway_s_folder_has_a_name_that_a_file_system_takes() -> None:
    many = ",".join(map(str, range(1000, 3000, 2)))
    assert folder_name(hosted(None, "0-99"), "0-99") == "0-99"
    name = folder_name(hosted(None, many), many)
    assert name.startswith("1000-2998-")
    assert len(name) <= 100
    assert name != folder_name(hosted(None, many[:-4] + "2998,3001"), many[:-4] + "2998,3001")


@pytest.mark.parametrize(
    ("client_id", "hosts", "reason"),
    [
        (None, None, "expected one of --client-id"),
        (1, "2", "expected one of --client-id"),
        (None, "a-b", "'a-b' is not a client id or a range"),
        (None, "9-3", "'9-3' is not a range from small to large"),
        (None, "1-3,2", "names a client twice"),
        (None, "0-99999999999", "'0-99999999999' is not a client id or a range"),
        (None, "0-999999999", "a node hosts at most 100000 clients"),
        (None, "0-60000,70000-110000", "a node hosts at most 100000 clients"),
        (None, "", "'' is not a client id"),
    ],
)
def test_hosts_that_cannot_be_meant_are_refused(
    client_id: int | None, hosts: str | None, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        hosted(client_id, hosts)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "expected --credentials DIR"),
        (("--credentials", "d", "--key", "k"), "contradicts --key and --ca"),
        (("--insecure", "--credentials", "d"), "--insecure contradicts --credentials"),
        (("--credentials", "nowhere"), "nowhere/client.key"),
        (("--insecure", "--when", "test '"), "--when test '"),
        (("--insecure", "--client-id", str(2**31)), "--client-id"),
        (("--insecure", "--hosts", "0-9"), "expected one of --client-id"),
        (("--insecure", "--ca", "c"), "contradict each other"),
        (("--insecure", "--server", "example.org:80"), "example.org is not this machine"),
        (("--insecure", "--server", "127.0.0.1:port"), "is not HOST:PORT"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    options: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    at = ("--server", "127.0.0.1:9", "--state", str(tmp_path / "state"), *own(tmp_path))
    assert run(["client", *at, *options]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert told.count("\n") == 1
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("state", ["file", "file/below"])
def test_a_state_folder_that_is_a_file_is_refused(
    state: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    at = ("--server", "127.0.0.1:9", "--insecure", "--state", str(tmp_path / state))
    assert run(["client", *at, *own(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    expected = f"--state {tmp_path / state}: is or lies in a file; name a folder"
    assert told.err == f"error: {expected}\n"
