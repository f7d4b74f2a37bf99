"""What clients keep, in whole runs: killed at any moment, resumed, and on Ray, it is the same."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from server.checkpoints import checkpoint_files
from shared_models.arrays import digest
from shared_models.client_states import FILE_NAME, ClientStates
from shared_models.files import sha256_of
from tests.test_runs import lines_of, simulate, wildflower

# Eight of twelve clients a round: some keep a state that is older than the last checkpoints.
PERSONAL = """
task = "digits-cnn"
[plan]
trainer = "loop"
block_size = 4
[data]
clients = 12
[evaluate]
clients_fraction = 0.5
[[stages]]
name = "first"
kind = "train"
rounds = 2
clients_per_round = 8
local_learning_rate = 0.1
{choice}
[[stages]]
name = "second"
kind = "train"
rounds = 4
clients_per_round = 8
local_learning_rate = 0.05
{choice}
"""
CHOICES = {"personal": 'personal = ["head."]', "scaffold": 'objective = "scaffold"'}

# Ends the process the hard way at the n-th step of what makes a round last, before or after it.
KILL_AT_STEP = """
import os, pathlib, signal
from shared_models.client_states import ClientStates
count, place, before = 0, {place}, {before}
def counted(owner, name):
    own = getattr(owner, name)
    def step(*args, **kwargs):
        global count
        count += 1
        here = count == place
        if here and before:
            os.kill(os.getpid(), signal.SIGKILL)
        found = own(*args, **kwargs)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(owner, name, step)
counted(pathlib.Path, "replace")
for name in ("save", "commit", "rewind", "prune"):
    counted(ClientStates, name)
"""


def kept(out: Path, stage: str = "second", number: int = 4) -> dict[int, str]:
    """Returns a digest of each client's state after a round."""
    with ClientStates(out / FILE_NAME, ["first", "second"]) as states:
        found = states.load(stage, number, range(12))
    return {
        k: digest({n: t for a in own.values() for n, t in a.items()}) for k, own in found.items()
    }


@pytest.fixture(scope="module")
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone, with an objective that keeps states."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "run.toml").write_text(PERSONAL.format(choice=CHOICES[request.param]))
    simulate(folder / "run.toml", folder / "alone")
    return folder / "alone"


def same(out: Path, alone: Path) -> None:
    """Asserts that both runs have the same weights, client states, and rows of evaluations."""
    for name in ("first.safetensors", "second.safetensors", "model.safetensors"):
        assert sha256_of(out / name) == sha256_of(alone / name)
    assert kept(out) == kept(alone) != {}
    told = [[json.loads(line)["clients_eval"] for line in lines_of(run)] for run in (out, alone)]
    assert told[0] == told[1]
    assert not list(out.glob(f"{FILE_NAME}-*")), "the database was closed tidily"


def killed_at(place: int, alone: Path, out: Path, *more: str, before: bool) -> None:
    first = KILL_AT_STEP.format(place=place, before=before)
    done = wildflower("simulate", alone.parent / "run.toml", "--out", out, *more, first=first)
    assert done.returncode == -signal.SIGKILL, (place, done.stderr)


FEW = [("personal", 11, False), ("scaffold", 24, True), ("personal", 33, False)]
STEPS = [  # a run takes 59
    (choice, place, place % 4 == 1) for choice in CHOICES for place in range(1, 60, 2)
]


@pytest.mark.parametrize(
    ("alone", "place", "before"),
    [*FEW, *(pytest.param(*own, marks=pytest.mark.slow) for own in STEPS if own not in FEW)],
    indirect=["alone"],
)
def test_killed_at_any_step_and_resumed_equals_left_alone(
    place: int, before: bool, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    killed_at(place, alone, out, before=before)
    done = wildflower("simulate", alone.parent / "run.toml", "--out", out, "--resume")
    assert done.returncode == 0, (place, done.stderr)
    same(out, alone)


@pytest.mark.parametrize(
    ("alone", "place"),
    [
        ("personal", 30),
        *(pytest.param("personal", place, marks=pytest.mark.slow) for place in (12, 50)),
        *(pytest.param("scaffold", place, marks=pytest.mark.slow) for place in (30, 40)),
    ],
    indirect=["alone"],
)
def test_killed_under_ray_and_resumed_under_ray_equals_left_alone(
    place: int, alone: Path, tmp_path: Path
) -> None:
    killed_at(place, alone, tmp_path / "killed", "--workers", "2", before=False)
    done = wildflower("simulate", tmp_path / "killed", "--resume", "--workers", "2")
    assert done.returncode == 0, (place, done.stderr)
    same(tmp_path / "killed", alone)


@pytest.mark.parametrize("alone", ["scaffold"], indirect=True)
def test_from_the_checkpoint_before_a_damaged_one_states_are_as_they_were(
    alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    killed_at(45, alone, out, before=False)
    newest = checkpoint_files(out / "checkpoints")[-1]
    assert "second" in newest.name
    newest.write_bytes(newest.read_bytes()[:-1])
    done = wildflower("simulate", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert "going back to the checkpoint before it" in done.stdout
    same(out, alone)


def test_with_the_best_weights_there_are_the_states_of_that_round(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(PERSONAL.format(choice=CHOICES["personal"]))
    # Only clients measure; the second stage learns, and then its server steps too far.
    settings = ["evaluate.data=none", "evaluate.clients_fraction=1.0"]
    settings += ["stages.second.local_learning_rate=0.3", "stages.second.server_learning_rate=3.0"]

    def run(name: str, *more: str) -> Path:
        words = [word for setting in (*settings, *more) for word in ("-s", setting)]
        simulate(tmp_path / "run.toml", tmp_path / name, *words)
        return tmp_path / name

    longer = run("longer", "stages.second.keep_best=true", "stages.second.rounds=7")
    best = json.loads((longer / "summary.json").read_text())["stages"][1]["best"]["round"]
    assert best < 5, "its checkpoint is gone long since"
    shorter = run("shorter", f"stages.second.rounds={best}")
    for name in ("second.safetensors", "model.safetensors"):
        assert sha256_of(longer / name) == sha256_of(shorter / name)
    assert kept(longer, "second", best) == kept(shorter, "second", best) != {}
