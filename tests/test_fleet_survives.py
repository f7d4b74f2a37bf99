"""What goes wrong on a fleet ends in the right, named outcome: every process is a real one.

`wildflower server`, `client` and `submit` on loopback with TLS and keys; half a minute and more
each.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.fleet.certificates import Signed, make_certificate
from deploy.fleet.home import ServerHome, create_home, renew_certificate
from shared_models.files import sha256_of
from tests.fleet_processes import (
    Fleet,
    node_ids,
    running_fleet,
    wait_for_training,
    worker_of,
)
from tests.test_fleet_client import wait_for, words_of
from tests.test_fleet_server import WILDFLOWER

pytestmark = pytest.mark.slow
# A round in which something can happen: seconds of training on each device.
LONG = "stages.train.local_epochs=15"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with running_fleet(tmp_path) as found:
        yield found


def rounds(count: int) -> str:
    return f"stages.train.rounds={count}"


def test_a_supernode_killed_in_a_round_is_named_or_answers_and_comes_back(fleet: Fleet) -> None:
    with (
        fleet.device("zero", "0"),
        fleet.device("one", "1") as one,
        # Flower holds a dead node for connected for a minute: rounds that it can come back to.
        fleet.submitted(rounds(20), LONG, "client_deadline_s=30") as run,
    ):
        run.reach(1)
        wait_for_training(one)
        node = one.node()
        assert node is not None
        node.kill()
        run.complete(20, 500)
        assert "the SuperNode died (signal 9); trying again" in one.said()
        assert {failure["client_id"] for failure in run.failures()} <= {1}
        assert run.rounds()[-1]["clients_aggregated"] == 2
        assert len(set(node_ids(fleet.folder / "one"))) == 1


def test_a_client_that_is_killed_and_started_anew_is_the_same_node(fleet: Fleet) -> None:
    with contextlib.ExitStack() as running:
        running.enter_context(fleet.device("zero", "0"))
        one = running.enter_context(fleet.device("one", "1"))
        run = running.enter_context(fleet.submitted(rounds(4), LONG, "client_deadline_s=30"))
        run.reach(1)
        wait_for_training(one)
        one.process.kill()
        wait_for(lambda: not one.family(), 20)
        running.enter_context(fleet.device("one", "1"))
        run.complete(4)
        assert {failure["client_id"] for failure in run.failures()} <= {1}
        ids = node_ids(fleet.folder / "one")
        assert len(ids) == 2
        assert len(set(ids)) == 1


def test_a_superlink_killed_in_a_run_costs_no_bit(fleet: Fleet) -> None:
    with (
        fleet.device("zero", "0") as zero,
        fleet.device("one", "1"),
        fleet.submitted(rounds(4), LONG) as run,
    ):
        run.reach(2)
        wait_for_training(zero)
        fleet.kill_superlink()
        run.complete(4, 400)
        assert "submitted again, to go on from its last round" in run.said()
        assert [record["clients_aggregated"] for record in run.rounds()] == [2] * 4
    again = fleet.folder / "again"
    command = (WILDFLOWER, "simulate", "--plan", run.home / "manifest.json", "--out", again)
    subprocess.run(command, check=True, capture_output=True)
    assert sha256_of(again / "model.safetensors") == sha256_of(run.home / "model.safetensors")


def test_a_renewal_waits_for_the_run_whose_token_is_on_no_command_line(fleet: Fleet) -> None:
    with (
        fleet.device("zero", "0"),
        fleet.device("one", "1"),
        fleet.submitted(rounds(3), LONG) as run,
    ):
        run.reach(1)
        server = psutil.Process(fleet.server.process.pid)
        apps = [
            words
            for p in server.children(recursive=True)
            if "flwr-serverapp" in str(words := words_of(p))
        ]
        assert [("--token-file" in words, "--token" in words) for words in apps] == [(True, False)]
        before = fleet.server.superlink()
        renew_certificate(fleet.server.home, [], 30)
        run.complete(3)
        assert "submitted again" not in run.said()
    wait_for(lambda: fleet.server.superlink() not in (None, before), 60)


# A device whose owner changed what it sends. Its hello is honest.
HOSTILE = textwrap.dedent(
    """
    import dataclasses
    import numpy as np
    from clients import answers

    honest = answers.encode_partial

    def change_sums(partial, change):
        sums = {
            name: dataclasses.replace(s, arrays={k: change(v) for k, v in s.arrays.items()})
            for name, s in partial.sums.items()
        }
        return honest(dataclasses.replace(partial, sums=sums))

    def nan(partial):
        return change_sums(partial, lambda array: array * float("nan"))

    def shape(partial):
        return change_sums(partial, lambda array: array.unsqueeze(0))

    def size(partial):
        rows = [dataclasses.replace(r, examples=10 * r.examples) for r in partial.rows]
        return honest(dataclasses.replace(partial, rows=tuple(rows)))

    def data(client_id):
        answers.encode_partial = KIND
        numbers = np.random.default_rng(client_id)
        return numbers.random((50, 8, 8), np.float32), numbers.integers(10, size=50)
    """
)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("nan", "holds NaN"), ("shape", "shape"), ("size", "claims 500 examples")],
)
def test_a_client_that_lies_is_refused_and_named_and_the_others_go_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    monkeypatch.chdir(fleet.folder)
    Path("hostile.py").write_text(HOSTILE.replace("KIND", kind))
    with (
        fleet.device("zero", "0"),
        fleet.device("one", "1", "hostile:data"),
        fleet.submitted(rounds(2)) as run,
    ):
        run.complete(2)
        assert [record["clients_aggregated"] for record in run.rounds()] == [1, 1]
        for failure in run.failures():
            assert (failure["client_id"], failure["status"]) == (1, "refused")
            assert reason in failure["reason"]


def test_a_client_that_hangs_is_cut_off_and_takes_part_in_the_next_round(fleet: Fleet) -> None:
    with (
        fleet.device("zero", "0"),
        fleet.device("one", "1") as one,
        fleet.submitted(rounds(4), "client_deadline_s=20") as run,
    ):
        run.reach(1)
        hanging = worker_of(one)
        hanging.suspend()
        run.complete(4)
        assert not hanging.is_running()
        (failure,) = run.failures()
        assert failure["client_id"] == 1
        assert failure["status"] == "failed"
        assert [record["clients_aggregated"] for record in run.rounds()].count(2) == 3
        assert run.rounds()[-1]["clients_aggregated"] == 2


def test_two_nodes_that_claim_one_client_are_an_error_that_names_it(fleet: Fleet) -> None:
    with (
        fleet.device("zero", "0"),
        fleet.device("also-zero", "0"),
        fleet.device("one", "1"),
        fleet.submitted(rounds(1)) as run,
    ):
        assert run.end() == 1
        assert "client 0 is claimed by node" in run.said()
        assert "Traceback" not in run.said()


def test_an_unknown_key_is_said_and_admitted_once_it_is_registered(fleet: Fleet) -> None:
    with fleet.device("one", "1", is_admitted=False, is_waited_for=False) as client:
        wait_for(lambda: "its key is not registered there" in client.said(), 60)
        assert sum("does not admit" in line for line in client.said().splitlines()) == 1
        state = ("--state", str(fleet.server.home.path))
        key = ("--public-key", str(fleet.folder / "one/client.pub"))
        subprocess.run((WILDFLOWER, "server", "add-client", "one", *state, *key), check=True)
        wait_for(lambda: "connected to" in client.said(), 90)
        assert "Traceback" not in client.said()


def test_a_server_of_another_authority_is_named_until_it_is_the_right_one(fleet: Fleet) -> None:
    home = fleet.server.home
    mine, ca = home.ca.read_bytes(), fleet.folder / "ca.pem"
    create_home(stranger := ServerHome(fleet.folder / "stranger"), [], 365)
    ca.write_bytes(stranger.ca.read_bytes())
    with fleet.device("one", "1", ca=ca, is_waited_for=False) as client:
        wait_for(lambda: "not signed by this device's ca.pem" in client.said(), 60)
        assert client.node() is None  # nothing is said to such a server
        ca.write_bytes(mine)
        wait_for(lambda: "connected to" in client.said(), 60)


def test_a_certificate_that_has_expired_is_named(fleet: Fleet) -> None:
    home = fleet.server.home
    authority = Signed(home.ca.read_bytes(), home.ca_key.read_bytes())
    old = make_certificate(authority, ["127.0.0.1"], -1)
    home.certificate.write_bytes(old.certificate)
    home.key.write_bytes(old.key)
    fleet.kill_superlink()
    with fleet.device("one", "1", is_admitted=False, is_waited_for=False) as client:
        wait_for(lambda: "the server's certificate has expired" in client.said(), 60)
        assert client.node() is None
        assert "Traceback" not in client.said()


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with (
        running_fleet(tmp_path) as fleet,
        small_disk(fleet.server.home.runs, "8m"),
        fleet.device("zero", "0"),
        fleet.device("one", "1"),
    ):
        filler = fleet.server.home.runs / "filler"
        with fleet.submitted(rounds(6), LONG) as run:
            run.reach(2)
            fill(filler)
            assert run.end() == 1
            assert "the server's disk is full" in run.said()
            assert "--resume` goes on" in run.said()
        filler.unlink()
        with fleet.resumed() as run:
            run.complete(6)
            assert "going on after round" in run.said()
            assert [record["round"] for record in run.rounds()] == [1, 2, 3, 4, 5, 6]


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root: a small disk is mounted")
    place.mkdir(exist_ok=True)
    mount = ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs to be allowed to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_gateway_answers_one_message_a_round_for_all_its_clients(fleet: Fleet) -> None:
    ten = ("data.clients=10", "stages.train.clients_per_round=10", "plan.block_size=10")
    with fleet.device("gateway", "0-9"), fleet.submitted(rounds(3), *ten) as run:
        run.complete(3)
        assert [record["clients_aggregated"] for record in run.rounds()] == [10] * 3
    log = (fleet.folder / "gateway/state/supernode.log").read_text()
    assert log.count("Receiving: train.block message") == 3
