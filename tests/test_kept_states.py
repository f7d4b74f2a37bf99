"""What clients of a fleet keep: on their nodes, as in a simulation whatever happens in between."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.answers import answer, forget
from clients.host import Host
from clients.hosting import Hosting, Keeping
from clients.kept_states import MOST_RUNS, with_kept, without_kept
from clients.local_data import opened_by
from clients.warm.packing import pack, unpack
from deploy.cli import run
from server.checkpoints import checkpoint_files
from server.run_folder import RunFolder
from shared_models.arrays import digest
from shared_models.client_states import FILE_NAME, ClientStates
from shared_models.config import Config, parse_config, to_toml
from shared_models.errors import CheckpointError, InputError, UpdateError
from shared_models.files import sha256_of
from shared_models.messages import BlockRequest, Kept
from shared_models.partial import ClientState, Partial, Row
from shared_models.verbs import TRAIN_BLOCK
from tests.conftest import DIGITS
from tests.fleet_in_memory import PostOffice, fleet, train
from tests.fleet_processes import running_fleet, wait_for_training
from tests.in_memory import config_of
from tests.test_fleet_client import wait_for
from tests.test_fleet_server import WILDFLOWER

SCAFFOLD = "stages.train.objective=scaffold"
CHOICES = [SCAFFOLD, "stages.train.objective=ditto", "stages.train.personal=['head.']"]
# Nine of twelve clients a round: some begin from a state that is rounds old.
NINE = "stages.train.clients_per_round=9"


@dataclass
class Device:
    """A node as `wildflower client` starts it, without the processes."""

    config: Config
    ids: tuple[int, ...]
    node: int
    folder: Path

    def __post_init__(self) -> None:
        keeping = Keeping(str(self.folder), 100)
        self._open = opened_by(Hosting("digits", self.ids, keeping=keeping))

    def __call__(self, message: Message) -> Message:
        # As bytes there and back: nothing of what the server has may be shared.
        verb, content = message.metadata.message_type, unpack(pack(message.content))
        told = answer(verb, to_toml(self.config), content, self._open)
        reply = Message(unpack(pack(told)), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = self.node
        return reply


def keeping_fleet(config: Config, folder: Path) -> PostOffice:
    """Returns two devices of six clients each, which keep their states in `folder`."""
    forget()
    nodes = {node: Device(config, ids, node, folder / str(node)) for node, ids in TWO.items()}
    return PostOffice(dict(nodes))


TWO = {71: tuple(range(0, 12, 2)), 72: tuple(range(1, 12, 2))}


TWO_STAGES = (
    DIGITS.replace("rounds = 4", 'rounds = 3\nobjective = "scaffold"')
    + """
[[stages]]
name = "second"
kind = "train"
rounds = 1
clients_per_round = 9
local_learning_rate = 0.05
objective = "scaffold"
"""
)


def kept(folder: Path, name: str = "run") -> dict[int, str]:
    """Returns a digest of each client's newest state on the two devices."""
    found: dict[int, ClientState] = {}
    for node, ids in TWO.items():
        with ClientStates(folder / str(node) / f"{name}.sqlite", ["train"]) as states:
            found |= states.load("train", 99, ids)
    return digests(found)


def digests(states: dict[int, ClientState]) -> dict[int, str]:
    return {
        client_id: digest({f"{part}.{n}": t for part, own in state.items() for n, t in own.items()})
        for client_id, state in sorted(states.items())
    }


def of_simulation(folder: RunFolder) -> dict[int, str]:
    with ClientStates(folder.client_states_file, ["train"]) as states:
        return digests(states.load("train", 99, range(12)))


def go_back(folder: RunFolder, rounds: int) -> None:
    """Leaves the folder as if the run had been killed after this many rounds."""
    for path in sorted(folder.checkpoints.iterdir()):
        if int(path.stem.rsplit("-", 1)[1]) > rounds:
            path.unlink()


# Some of a cohort crash or send what is refused; below the quorum another cohort is asked.
FAULTY = ("faults.crash=0.2", "faults.nan=0.1", "stages.train.min_clients=7")
AGAIN = ("stages.train.max_attempts=20", "evaluate.clients_fraction=0.5")


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("more", [(), (*FAULTY, *AGAIN)])
def test_a_fleets_run_is_replayed_bit_for_bit_with_the_states_of_its_devices(
    choice: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    config = config_of(choice, NINE, *more)
    folder, _ = train(config, keeping_fleet(config, tmp_path), tmp_path / "run")
    out, manifest = tmp_path / "replay", str(folder.manifest_file)
    assert run(["simulate", "--plan", manifest, "--out", str(out)]) == 0
    assert sha256_of(out / "model.safetensors") == sha256_of(folder.model_file)
    told = [record.clients_eval for record in folder.records()]
    assert told == [record.clients_eval for record in RunFolder(out).records()]
    assert not more or max(record.attempts for record in folder.records()) > 1
    assert since(folder) == since(RunFolder(out))
    counted = {client_id for client_id, number in since(folder).items() if number}
    assert counted <= kept(tmp_path).keys()
    if not more:  # else some have kept what did not count
        assert kept(tmp_path) == of_simulation(RunFolder(out)) != {}


def since(folder: RunFolder) -> dict[int, int]:
    with ClientStates(folder.client_states_file, ["train"]) as states:
        return states.newest("train", 99, range(12))


def test_nothing_of_a_state_is_at_the_server(tmp_path: Path) -> None:
    config = config_of(CHOICES[2], NINE)
    seen: list[set[str]] = []
    grid = keeping_fleet(config, tmp_path)

    def watched(device: Callable[[Message], Message | None]) -> Callable[[Message], Message | None]:
        def answered(message: Message) -> Message | None:
            reply = device(message)
            assert reply is not None
            seen.append({*message.content, *reply.content})
            return reply

        return answered

    grid.nodes = {node: watched(device) for node, device in grid.nodes.items()}
    folder, _ = train(config, grid, tmp_path / "run")
    assert not [name for names in seen for name in names if name.startswith("state.")]
    with ClientStates(folder.client_states_file, ["train"]) as states:
        found = states.load("train", 99, range(12))
    assert len(found) == 12
    assert not any(found.values())


@pytest.mark.parametrize("rounds", [3, 2])
@pytest.mark.parametrize("choice", CHOICES[:2])
def test_a_round_that_is_repeated_begins_from_the_states_that_it_began_from(
    choice: str, rounds: int, tmp_path: Path
) -> None:
    config = config_of(choice, NINE, "keep_checkpoints=3")
    whole, _ = train(config, keeping_fleet(config, tmp_path / "a"), tmp_path / "a/run")
    again, _ = train(config, keeping_fleet(config, tmp_path / "b"), tmp_path / "b/run")
    go_back(again, rounds)
    again, _ = train(config, keeping_fleet(config, tmp_path / "b"), again.path, resume=True)
    assert sha256_of(again.model_file) == sha256_of(whole.model_file)
    assert kept(tmp_path / "a") == kept(tmp_path / "b") != {}


def test_states_of_an_earlier_stage_stay_while_the_server_may_go_back_to_it(tmp_path: Path) -> None:
    config = parse_config(TWO_STAGES, "test")
    whole, _ = train(config, keeping_fleet(config, tmp_path / "a"), tmp_path / "a/run")
    again, _ = train(config, keeping_fleet(config, tmp_path / "b"), tmp_path / "b/run")
    assert len(checkpoint_files(again.checkpoints)) == 2
    checkpoint_files(again.checkpoints)[-1].unlink()  # it was the second stage's only one
    again, _ = train(config, keeping_fleet(config, tmp_path / "b"), again.path, resume=True)
    assert sha256_of(again.model_file) == sha256_of(whole.model_file)
    checkpoint_files(again.checkpoints)[-1].unlink()
    checkpoint_files(again.checkpoints)[-1].unlink()
    again, _ = train(config, keeping_fleet(config, tmp_path / "b"), again.path, resume=True)
    assert sha256_of(again.model_file) == sha256_of(whole.model_file)


def test_what_did_not_count_is_not_begun_from(tmp_path: Path) -> None:
    """Answers of round 2 are lost on their way: whoever gave them begins from round 1."""
    config = config_of(SCAFFOLD, "stages.train.clients_per_round=12")
    grid = keeping_fleet(config, tmp_path)
    device, lost = grid.nodes[71], list[int]()

    def lossy(message: Message) -> Message | None:
        reply = device(message)
        if message.metadata.message_type != TRAIN_BLOCK:
            return reply
        about = message.content.config_records["request"]
        if about["round"] == 2:
            lost.append(1)
            raise AttributeError("what Flower chokes on")
        if about["round"] == 3:
            assert about["since"] == [1] * len(about["client_ids"])  # type: ignore[arg-type]
        return reply

    grid.nodes[71] = lossy
    folder, _ = train(config, grid, tmp_path / "run")
    assert [record.clients_aggregated for record in folder.records()] == [12, 6, 12, 12]
    assert lost


def test_a_device_that_lost_its_states_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    config = config_of(SCAFFOLD, "stages.train.clients_per_round=12", "keep_checkpoints=3")
    folder, _ = train(config, keeping_fleet(config, tmp_path), tmp_path / "run")
    go_back(folder, 3)
    shutil.rmtree(tmp_path / "72")
    folder, _ = train(config, keeping_fleet(config, tmp_path), folder.path, resume=True)
    last = folder.records()[-1]
    assert [failure.client_id for failure in last.failures] == list(TWO[72])
    assert "client 1: what it kept after round 3 of stage 'train' is not" in last.failures[0].reason
    assert last.clients_aggregated == 6


def test_nodes_that_cannot_keep_anything_are_named_before_the_first_round(tmp_path: Path) -> None:
    config = config_of(SCAFFOLD)
    with pytest.raises(InputError, match="the node of client 0 has no place: start nodes by"):
        train(config, fleet(config, 71, 72), tmp_path / "run")


def test_a_run_without_an_id_of_ours_cannot_be_kept_for(tmp_path: Path) -> None:
    config = config_of(SCAFFOLD)
    with pytest.raises(InputError, match="an id that only `wildflower submit` gives"):
        train(config, keeping_fleet(config, tmp_path), tmp_path / "run", run_id=None)


@pytest.mark.slow
def test_a_killed_superlink_and_killed_devices_cost_no_bit(tmp_path: Path) -> None:
    settings = ("stages.train.rounds=5", "stages.train.local_epochs=5", SCAFFOLD)
    with running_fleet(tmp_path) as fleet:
        with (
            fleet.device("zero", "0") as zero,
            fleet.device("one", "1") as one,
            fleet.submitted(*settings) as run,
        ):
            run.reach(1)
            wait_for_training(zero)
            fleet.kill_superlink()
            run.reach(3, 300)
            stop = (WILDFLOWER, "stop", str(run.home), *fleet.access)
            subprocess.run(stop, check=True, capture_output=True)
            assert run.end() == 1
            for device in (zero, one):
                device.process.kill()
            wait_for(lambda: not zero.family() and not one.family(), 20)
        with fleet.device("zero", "0"), fleet.device("one", "1"), fleet.resumed() as run:
            run.complete(5)
            assert [record["clients_aggregated"] for record in run.rounds()] == [2] * 5
    again = tmp_path / "again"
    replay = (WILDFLOWER, "simulate", "--plan", run.home / "manifest.json", "--out", again)
    subprocess.run(replay, check=True, capture_output=True)
    assert sha256_of(again / "model.safetensors") == sha256_of(run.home / "model.safetensors")
    (kept_file,) = (tmp_path / "zero/state/client_states").iterdir()
    with (
        ClientStates(kept_file, ["train"]) as states,
        ClientStates(again / FILE_NAME, ["train"]) as simulated,
    ):
        assert digests(states.load("train", 5, [0])) == digests(simulated.load("train", 5, [0]))


STATE: ClientState = {"control": {"w": torch.ones(4)}}


def host_of(folder: Path, *overrides: str, room_mb: int = 100) -> Host:
    hosting = Hosting("digits", (0, 1), keeping=Keeping(str(folder), room_mb))
    return opened_by(hosting)(config_of(*overrides))


def trained(host: Host, number: int, since: int, name: str = "r", client_id: int = 0) -> Partial:
    """Has a client keep the number of a round that it trained in."""
    request = asked(number, since, name, client_id)
    with_kept(host, request)
    state = {"control": {"w": torch.full((4,), float(number))}}
    partial = Partial({}, (Row(client_id, 10),), states={client_id: state})
    return without_kept(host, request, partial)


def asked(number: int, since: int, name: str = "r", client_id: int = 0) -> BlockRequest:
    return BlockRequest(
        "train", number, 0, 0, (client_id,), {}, kept=Kept(name, {client_id: since})
    )


def begins(host: Host, number: int, since: int) -> float:
    """Returns what client 0 kept when it begins a round."""
    states = with_kept(host, asked(number, since)).states
    return states[0]["control"]["w"][0].item()


def test_the_server_may_go_back_as_far_as_it_has_checkpoints_and_no_further(tmp_path: Path) -> None:
    host = host_of(tmp_path, "keep_checkpoints=2")
    for number in range(1, 8):
        trained(host, number, number - 1)
    # It was killed in round 7, before round 6 was on the disk, and 5 is damaged.
    assert [begins(host, number, number - 1) for number in (5, 6, 7, 8)] == [4.0, 5.0, 6.0, 7.0]
    with pytest.raises(CheckpointError, match="what it kept after round 3"):
        begins(host, 4, 3)


def test_one_client_s_pruning_does_not_touch_another_s_states(tmp_path: Path) -> None:
    host = host_of(tmp_path)
    trained(host, 1, 0)
    for number in (2, 3):
        trained(host, number, 1)  # two answers that did not count
    for number in range(4, 12):
        trained(host, number, 0 if number == 4 else number - 1, client_id=1)
    assert begins(host, 12, 1) == 1.0


def test_a_training_that_is_killed_before_it_is_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(tmp_path)
    trained(host, 1, 0)

    def killed(_: ClientStates) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ClientStates, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(host, 2, 1)
    monkeypatch.undo()
    assert begins(host, 2, 1) == 1.0
    trained(host, 2, 1)
    assert begins(host, 3, 2) == 2.0


def test_the_states_of_the_newest_runs_are_kept(tmp_path: Path) -> None:
    host = host_of(tmp_path)
    for name in ("a", "b", "c", "a", "d"):
        trained(host, 1, 0, name)
    assert MOST_RUNS == 3
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_an_older_run_makes_room_and_what_never_fits_is_refused(tmp_path: Path) -> None:
    host = host_of(tmp_path, room_mb=1)
    for name in ("a", "b"):
        trained(host, 1, 0, name)
    (tmp_path / "a.sqlite").write_bytes(bytes(2**20))
    trained(host, 2, 1, "b")
    assert [path.stem for path in tmp_path.iterdir()] == ["b"]
    large = Partial({}, (), states={0: {"w": {"w": torch.zeros(2**17)}}})
    with pytest.raises(CheckpointError, match=r"2 clients keep takes 4 MB .* has 1 MB for it"):
        without_kept(host, asked(3, 2, "b"), large)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", "..", "."])
def test_whatever_a_run_is_called_its_file_is_in_the_folder(name: str, tmp_path: Path) -> None:
    trained(host_of(tmp_path / "own"), 1, 0, name)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
    assert len(list((tmp_path / "own").glob("*.sqlite"))) == 1


def test_a_device_does_not_send_what_clients_keep_to_whoever_asks(tmp_path: Path) -> None:
    partial = Partial({}, (Row(0, 10),), states={0: STATE})
    request = replace(asked(1, 0), kept=None)
    with pytest.raises(UpdateError, match="does not leave this device"):
        without_kept(host_of(tmp_path), request, partial)
    assert without_kept(replace(host_of(tmp_path), keeping=None), request, partial) is partial


STEPS = st.lists(
    st.one_of(
        st.dictionaries(st.integers(0, 1), st.booleans(), min_size=1),  # asked: did it count?
        st.integers(1, 3),  # the server is killed and goes back so many rounds, if it may
    ),
    min_size=8,
    max_size=20,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_whatever_happens_a_client_begins_with_its_newest_state_that_counted(
    steps: list[dict[int, bool] | int],
) -> None:
    counted: dict[int, list[int]] = {0: [0], 1: [0]}  # the server's view: rounds, by client
    place = oldest = 0
    with tempfile.TemporaryDirectory() as folder:
        host = host_of(Path(folder), "keep_checkpoints=2")
        for step in steps:
            if isinstance(step, int):
                place = max(place - step, oldest)
                counted = {k: [r for r in own if r <= place] for k, own in counted.items()}
                continue
            place += 1
            oldest = max(oldest, place - 3)
            for client_id, counts in step.items():
                since = counted[client_id][-1]
                states = with_kept(host, asked(place, since, "r", client_id)).states
                found = states[client_id]["control"]["w"][0].item() if since else 0
                assert found == since
                trained(host, place, since, "r", client_id)
                counted[client_id] += [place] if counts else []
