"""What a run needs is known before it starts, and refused in the user's words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deploy.cli import run
from server.budget import Demand, Room, check_budget, room_at, states_bytes, updates_bytes
from shared_models.client_states import FILE_NAME, ClientStates
from shared_models.errors import InputError

GB = 10**9
ROOM = Room(Path("runs/a"), 12 * GB, 12 * GB)
MODEST = Demand("train", 50, 1000, 100, 800_000, 6_600_000, "weighted_mean", keeps_updates=False)


def refusal(demand: Demand, room: Room = ROOM) -> str:
    with pytest.raises(InputError) as caught:
        check_budget(demand, 2, room)
    return str(caught.value)


def test_what_fits_is_not_refused() -> None:
    check_budget(MODEST, 2, ROOM)
    check_budget(replace(MODEST, clients=100_000, state_bytes=0), 2, replace(ROOM, disk_bytes=0))
    check_budget(replace(MODEST, cohort=10_000), 2, replace(ROOM, memory_bytes=GB))


def test_updates_that_do_not_fit_memory_are_refused() -> None:
    median = replace(MODEST, cohort=10_000, aggregator="median", keeps_updates=True, state_bytes=0)
    assert refusal(median) == (
        "stage 'train': aggregator 'median' keeps all 10000 updates of 6.6 MB at once and joins "
        "them: 132 GB, there are 12 GB; use a smaller clients_per_round or another aggregator"
    )
    check_budget(median, 2, replace(ROOM, memory_bytes=updates_bytes(median)))


def test_states_that_do_not_fit_the_disk_are_refused() -> None:
    many = replace(MODEST, clients=100_000, rounds=5000)
    assert refusal(many) == (
        "stage 'train': 100000 clients keep 800 kB each from round to round: with 2 checkpoints "
        "up to 90 GB, there are 12 GB free for runs/a; choose an --out on a larger disk, or use "
        "fewer clients, a smaller keep_checkpoints or another objective"
    )
    check_budget(many, 2, replace(ROOM, disk_bytes=states_bytes(many, 2)))


def test_a_short_run_writes_no_more_states_than_it_trains_clients() -> None:
    short = replace(MODEST, clients=100_000, rounds=2)
    assert states_bytes(short, 2) < 200 * 1.2 * short.state_bytes


def test_a_state_larger_than_the_file_can_take_is_refused() -> None:
    assert "a client would keep 2.0 GB" in refusal(replace(MODEST, state_bytes=2 * GB))


@pytest.mark.parametrize("floats", [1, 1000, 2500, 30_000])
def test_the_file_is_no_larger_than_foretold(floats: int, tmp_path: Path) -> None:
    demand = replace(MODEST, clients=40, cohort=20, rounds=12, state_bytes=4 * floats)
    path = tmp_path / FILE_NAME
    with ClientStates(path, ["train"]) as states:
        for number in range(1, 13):
            cohort = range(20) if number % 2 else range(20, 40)
            states.save("train", number, {k: {"c": {"w": torch.zeros(floats)}} for k in cohort})
            states.commit()
            states.prune("train", number - 2)
    # A few pages are there before any state is.
    assert 0.5 * 40 * 4 * floats < path.stat().st_size < states_bytes(demand, 2) + 100_000


def test_room_is_measured_where_the_run_will_be_and_counts_its_own_states(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    before = room_at(folder)
    assert before.disk_bytes > 0
    assert before.memory_bytes > 0
    folder.mkdir(parents=True)
    with (folder / FILE_NAME).open("wb") as file:
        file.truncate(2**42)  # takes no place: what is counted is its size
    assert room_at(folder).disk_bytes > 2**42


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ('personal=["head."]', "12 clients keep 1.3 kB each"),
        ('objective="scaffold"', "12 clients keep 35 kB each"),
        ('aggregator="median"', "aggregator 'median' keeps all 10 updates of 35 kB at once"),
        ("keep_best=true", None),
    ],
)
def test_a_run_that_does_not_fit_leaves_no_folder(
    setting: str,
    reason: str | None,
    digits_toml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("server.budget.room_at", lambda folder: Room(folder, 1000, 1000))
    out = tmp_path / "run"
    code = run(["simulate", str(digits_toml), "--out", str(out), "-s", f"stages.train.{setting}"])
    assert (code, out.exists()) == ((2, False) if reason else (0, True))
    assert (reason or "") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("faults.crash=[3, 999]", "faults.crash: there is no client 999; the 5 there are have"),
        ("stages.train.min_clients=8", "stages.train.min_clients: is 8, the population has 5"),
    ],
)
def test_what_the_population_does_not_have_is_refused_before_anything_is_written(
    setting: str, told: str, digits_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = digits_toml.parent / "run"
    arguments = ["simulate", str(digits_toml), "--out", str(out), "-s", "data.clients=5"]
    assert run([*arguments, "-s", setting]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()
