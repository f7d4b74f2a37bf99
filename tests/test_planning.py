"""The plan: measured before round 1, written down, kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients.app import app
from clients.planner import block_size, settle
from clients.trainers import TRAINERS
from deploy.cli import run
from deploy.engines.grid import RunConfig
from deploy.engines.inline import InlineGrid
from server.app import make_app
from server.run_folder import RunFolder
from shared_models.config import Plan, to_toml
from shared_models.datasets.load import load_dataset
from shared_models.errors import DataError, InputError
from shared_models.files import sha256_of
from shared_models.tasks import TASKS, load_task
from tests.conftest import ROOT
from tests.in_memory import config_of, opened

AUTO = ("-s", "plan.trainer=auto")


def test_auto_measures_what_fits_and_keeps_the_fastest() -> None:
    _, host, _ = opened("plan.trainer=auto")
    measured = settle(host)
    assert set(measured.seconds) == {"reused", "fused", "vectorised"}
    assert measured.plan.trainer == min(measured.seconds, key=measured.seconds.__getitem__)
    assert measured.plan.block_size == 4, "what the config says is kept"
    assert not measured.plan.is_open


def test_what_does_not_fit_is_not_tried_and_the_plan_says_why() -> None:
    _, host, _ = opened("plan.trainer=auto", "stages.train.local_clip_norm=1.0")
    measured = settle(host)
    assert set(measured.seconds) == {"reused", "vectorised"}
    assert measured.describe().endswith(
        "; not fused, low_rank: its local optimiser does more than step down the gradient)"
    )


def test_when_the_time_is_over_only_the_first_that_fits_was_measured() -> None:
    _, host, _ = opened("plan.trainer=auto")
    measured = settle(host, budget_s=0.0)
    assert set(measured.seconds) == {"reused"}
    over = "the time for measuring was over"
    assert measured.left_out == dict.fromkeys(("fused", "low_rank", "vectorised"), over)


@pytest.mark.parametrize("objective", ["fedprox", "scaffold", "fednova", "ditto"])
def test_every_objective_can_be_planned(objective: str) -> None:
    _, host, _ = opened("plan.trainer=auto", f"stages.train.objective={objective}")
    measured = settle(host)
    assert set(measured.seconds) == {"loop", "vectorised"}
    why = "its objective does more than descend on the task's loss"
    assert measured.left_out == dict.fromkeys(("reused", "fused", "low_rank"), why)


def test_where_nobody_measures_the_folder_says_who_trained(tmp_path: Path) -> None:
    """As under stock Flower, where nodes are given a config whose plan is open."""
    config = to_toml(config_of("plan.trainer=auto", "stages.train.objective=scaffold"))
    settings: RunConfig = {"config": config, "out": str(tmp_path / "flower"), "resume": False}
    grid = InlineGrid(app, {"config": config})
    make_app(lambda _: None)(grid, Context(1, 1, {}, RecordDict(), settings))
    assert RunFolder(tmp_path / "flower").config().plan.trainer == "loop"
    manifest = str(tmp_path / "flower" / "manifest.json")
    again = ["simulate", str(tmp_path / "flower"), "--plan", manifest, "--out"]
    assert run([*again, str(tmp_path / "again")]) == 0
    first, second = (sha256_of(tmp_path / n / "model.safetensors") for n in ("flower", "again"))
    assert first == second


def test_a_compiled_step_wants_one_learning_rate() -> None:
    overrides = ("plan.compile=true", "stages.train.local_schedule=exponential")
    _, host, _ = opened("plan.trainer=vectorised", *overrides)
    with pytest.raises(InputError, match="which local_schedule changes"):
        host.trainer("train")


def test_compiled_kernels_are_only_used_where_they_were_measured() -> None:
    _, host, _ = opened("plan.trainer=auto", "plan.dtype=float64")
    assert not settle(host).plan.compile


@pytest.mark.slow
def test_who_asks_for_compiled_kernels_gets_them() -> None:
    _, asked, _ = opened("plan.trainer=auto", "plan.compile=true", "stages.train.rounds=1")
    measured = settle(asked)
    assert measured.plan.compile
    assert all(name.endswith("+") for name in measured.seconds)


def test_a_forced_trainer_is_not_measured() -> None:
    _, host, _ = opened("plan.trainer=fused")
    assert settle(host).seconds == {}


@pytest.mark.parametrize("cohort", [1, 2, 7, 10, 100, 1000, 10_000])
def test_blocks_share_the_cohort_evenly_and_stay_small(cohort: int) -> None:
    for trainer, most in (("low_rank", 100), ("fused", 32)):
        size = block_size(Plan(trainer=trainer), cohort)  # type: ignore[arg-type]
        assert 1 <= size <= min(most, cohort)
        assert size == cohort or size * 2 >= min(most, cohort) / 2


def test_an_objective_that_not_all_can_train_runs_when_its_plan_is_open(
    digits_toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    objective = ("-s", "stages.train.objective=scaffold")
    assert run(["simulate", str(digits_toml), "--out", str(out), *AUTO, *objective]) == 0
    assert RunFolder(out).config().plan.trainer in {"loop", "vectorised"}


def test_the_plan_is_in_the_folder_and_a_rerun_and_a_resume_use_it(
    digits_toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run(["simulate", str(digits_toml), "--out", str(out), *AUTO]) == 0
    plan = RunFolder(out).config().plan
    assert plan.trainer != "auto"
    manifest = RunFolder(out).manifest()
    assert manifest["plan"]["trainer"] == plan.trainer
    assert manifest["plan"]["trainer"] in {
        n.removesuffix("+") for n in manifest["measured"]["ms_a_client"]
    }
    assert "is not dense" in manifest["measured"]["left_out"]["low_rank"]
    assert run(["simulate", str(out), "--out", str(tmp_path / "again")]) == 0
    assert run(["simulate", str(digits_toml), "--out", str(out), *AUTO, "--resume"]) == 0
    forced = ["--plan", str(out / "manifest.json")]
    assert (
        run(["simulate", str(digits_toml), "--out", str(tmp_path / "forced"), *AUTO, *forced]) == 0
    )
    hashes = {sha256_of(tmp_path / name / "model.safetensors") for name in ("again", "forced")}
    assert hashes == {sha256_of(out / "model.safetensors")}


def test_a_plan_from_elsewhere_is_checked(
    digits_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.json"
    fleet.write_text(json.dumps({"plan": {"trainer": "loop", "block_map": "node"}}))
    (tmp_path / "odd.json").write_text("[]")
    (tmp_path / "list.json").write_text('{"plan": []}')
    for given, told in (
        ("nothing.json", "there is no such file"),
        (str(tmp_path / "odd.json"), "not the manifest.json of a run"),
        (str(tmp_path / "list.json"), "not the manifest.json of a run"),
        (str(fleet), "the fleet trained on data that is not here"),
        ("fast", "must be 'auto', 'loop'"),
        ("low_rank", "cannot train 'digits-cnn': layer encoder.conv (Conv2d) is not dense"),
    ):
        assert run(["simulate", str(digits_toml), "--plan", given]) == 2
        assert told in capsys.readouterr().err


TINY = """
task = "{name}"

[data]
clients = 2
max_examples_per_client = 8

[evaluate]
data = "none"

[[stages]]
kind = "train"
rounds = 1
clients_per_round = 2
batch_size = 4
local_learning_rate = 0.01
"""


def trainers_of(task: str) -> set[str]:
    """Returns which trainers fit a task, as the page on the zoo says."""
    _, after = (ROOT / "docs" / "zoo.md").read_text().split("trainers that fit")
    cells = [row.split("|")[1:3] for row in after.split("\n\n")[0].splitlines() if "| `" in row]
    (named,) = [trainers for tasks, trainers in cells if f"`{task}`" in tasks]
    return set(re.findall(r"`(\w+)`", named))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_manifest_says_who_can_train_a_task_and_why_others_cannot(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.format(name=name))
    try:
        load_dataset(load_task(name).dataset)
    except DataError as error:
        pytest.skip(f"NO DATA: {error}")
    assert run(["simulate", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]) == 0
    manifest = RunFolder(tmp_path / "run").manifest()
    took, left_out = manifest["measured"]["ms_a_client"], manifest["measured"]["left_out"]
    fit = {trainer.removesuffix("+") for trainer in took}
    assert fit == trainers_of(name)
    assert manifest["plan"]["trainer"] in fit
    # `reused` does what the loop does: one of them is enough.
    assert fit | set(left_out) | {"loop"} == set(TRAINERS)
    assert all(left_out.values())
