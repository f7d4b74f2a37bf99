"""Which clients a registered device may host: told when it is added, held to in every run."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cli import run
from deploy.fleet.home import ServerHome, create_home
from deploy.fleet.hosts import MOST_CLIENTS, parse_hosts
from deploy.fleet.registry import describe_clients, may_host
from server.fleet_register import Register, Registered, read_register, write_register
from server.population import Enough
from server.roll_call import RollTimes, call_roll
from shared_models.errors import InputError
from shared_models.messages import Hello
from shared_models.verbs import LEFT_OUT
from tests.fleet_in_memory import Device, PostOffice
from tests.in_memory import config_of

REGISTER = Register({71: Registered("kitchen", (0, 2)), 72: Registered("hall")})


def hello(*ids: int, shared: bool = False) -> Hello:
    return Hello(ids, tuple(10 for _ in ids), shared, "a", {})


@pytest.mark.parametrize(
    ("node", "ids", "told"),
    [
        (71, (0, 2), None),
        (71, (0, 1), "it may not host client 1"),
        (72, (1, 3), None),
        (72, (1, 2), "client 2 belongs to kitchen"),
        (73, (5,), None),  # a server without TLS knows nobody
    ],
)
def test_a_device_hosts_its_own_clients_and_nobody_elses(
    node: int, ids: tuple[int, ...], told: str | None
) -> None:
    assert REGISTER.objection(node, hello(*ids)) == told


def test_who_claims_anothers_client_is_left_out_by_name_and_the_run_goes_on(tmp_path: Path) -> None:
    write_register(tmp_path, Register({9: Registered("kitchen", (7,)), 71: Registered("hall")}))
    register = read_register(tmp_path)
    config = config_of()
    grid = PostOffice({71: Device(config, 0, 2, 71), 72: Device(config, 1, 2, 72)})
    roll = call_roll(grid, Enough(6), RollTimes(0.3, 0.3), register)
    assert sorted(roll.hellos) == [71]
    assert roll.left_out == {"node 72": "client 7 belongs to kitchen"}
    (told,) = grid.waiting.values()
    assert (told.metadata.dst_node_id, told.metadata.message_type) == (72, LEFT_OUT)
    assert told.content[LEFT_OUT] == {"reason": "client 7 belongs to kitchen"}


def test_who_could_train_anyone_takes_no_part_in_a_fleet_s_run() -> None:
    told = REGISTER.objection(72, hello(0, 1, 2, shared=True))
    assert told == "it hosts no clients of its own; start it by `wildflower client`"


def test_a_damaged_register_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "nodes.json").write_text('{"7": {"name": "hall"}}')
    with pytest.raises(InputError, match="damaged: 'client_ids'; restart the server"):
        read_register(tmp_path)
    (tmp_path / "nodes.json").unlink()
    assert read_register(tmp_path) == Register()


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    made = ServerHome(tmp_path / "server")
    create_home(made, [], 30)
    return made


def test_an_id_is_given_to_one_device(
    home: ServerHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def add(name: str, *options: str) -> int:
        at = ("--state", str(home.path), "--out", str(tmp_path / name))
        return run(["server", "add-client", name, *at, *options])

    assert add("gateway", "--hosts", "0-9") == 0
    assert add("hall") == 0
    assert add("thief", "--hosts", "9,10") == 2
    assert "client 9 belongs to 'gateway' already" in capsys.readouterr().err
    assert not (tmp_path / "thief" / "client.key").exists()
    assert may_host(home, "gateway") == tuple(range(10))
    assert [row["hosts"] for row in describe_clients(home)] == ["0-9", None]
    assert run(["server", "remove-client", "gateway", "--state", str(home.path)]) == 0
    assert add("heir", "--hosts", "9,10") == 0


@pytest.mark.parametrize("text", ["", "x", "3-1", "1,1", "1-2-3", "-1", "0-99999999999"])
def test_what_names_no_clients_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--hosts"):
        parse_hosts(text)


def test_a_node_s_clients_have_a_bound() -> None:
    assert len(parse_hosts(f"0-{MOST_CLIENTS - 1}")) == MOST_CLIENTS
    with pytest.raises(InputError, match="at most"):
        parse_hosts(f"0-{MOST_CLIENTS}")
    with pytest.raises(InputError, match="at most"):
        parse_hosts(f"0-{MOST_CLIENTS - 1},{MOST_CLIENTS}")
