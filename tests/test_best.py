"""Early stopping and the best model: the same stop and the same bytes, whenever a run is killed."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run as command
from server.best import better, has_stopped, measure
from server.checkpoints import checkpoint_files
from server.records import Best, RoundRecord, record_from_json
from server.run_folder import RunFolder
from shared_models.config import TrainStage, parse_config
from shared_models.errors import CheckpointError, ConfigError
from shared_models.files import sha256_of
from tests.conftest import DIGITS
from tests.in_memory import config_of
from tests.test_checkpoints import checkpoint
from tests.test_runs import KILL_AT_WRITE, lines_of, simulate, wildflower

# The first stage is so hasty that its accuracy goes up and down; the second begins from its best.
HASTY = """
task = "digits-cnn"
[plan]
trainer = "loop"
block_size = 10
[data]
clients = 12
[[stages]]
name = "first"
kind = "train"
rounds = 9
clients_per_round = 3
local_learning_rate = 0.5
early_stopping_rounds = 2
keep_best = true
[[stages]]
name = "second"
kind = "train"
rounds = 2
clients_per_round = 3
local_learning_rate = 0.5
keep_best = true
"""
RESULTS = ("first.safetensors", "second.safetensors", "model.safetensors")


def record_of(number: int, **told: Any) -> RoundRecord:
    return replace(checkpoint(number).record, **told)


def test_a_round_is_judged_by_the_first_metric_or_else_by_the_loss() -> None:
    assert measure(record_of(3, eval={"loss": 0.1, "f1": 0.5, "accuracy": 0.9})) == Best(
        3, "f1", 0.5
    )
    assert measure(record_of(3, eval={"loss": 0.1})) == Best(3, "loss", 0.1)
    clients = {
        "clients": 5.0,
        "loss": 0.2,
        "loss_p50": 0.2,
        "f1": 0.5,
        "f1_p50": 0.4,
        "failed": 0.0,
    }
    assert measure(record_of(3, eval=None, clients_eval=clients)) == Best(3, "f1", 0.5)
    assert measure(record_of(3, eval={"loss": 1.0}, clients_eval=clients)) == Best(3, "loss", 1.0)
    assert measure(record_of(3, eval=None)) is None


def test_a_round_without_evaluation_neither_wins_nor_ends_anything() -> None:
    first, later = Best(1, "accuracy", 0.5), record_of(9, eval=None, best=Best(1, "accuracy", 0.5))
    assert better(first, None) == first
    assert better(None, None) is None
    stage = config_of("stages.train.early_stopping_rounds=2").learning_stages[0]
    assert not has_stopped(stage, later)
    assert has_stopped(stage, replace(later, eval={"accuracy": 0.5}))
    assert not has_stopped(stage, replace(later, round=2, eval={"accuracy": 0.5}))


def test_the_best_round_survives_the_way_to_json() -> None:
    record = record_of(3, best=Best(2, "accuracy", 0.1 + 0.2))
    assert record_from_json(record.to_json()) == record


@pytest.mark.parametrize("key", ["early_stopping_rounds=2", "keep_best=true"])
def test_what_nobody_measures_is_never_the_best(key: str) -> None:
    nobody = [f"stages.train.{key}", "evaluate.data=none"]
    with pytest.raises(ConfigError, match=r"stages\.train\.\w+: needs an evaluation"):
        config_of(*nobody)
    config_of(*nobody, "evaluate.clients_fraction=0.5")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hasty run that was left alone."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "hasty.toml").write_text(HASTY)
    simulate(folder / "hasty.toml", folder / "run")
    return folder / "run"


def stage_of(name: str) -> TrainStage:
    return parse_config(HASTY, "test").stage(name)


def test_a_stage_ends_early_with_its_best_weights_and_says_so(alone: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in lines_of(alone)]
    first = [line for line in lines if line["stage"] == "first"]
    values = [line["eval"]["accuracy"] for line in first]
    best = values.index(max(values)) + 1
    assert 1 < best < len(first) == best + 2 < 9, values
    assert first[-1]["best"] == {"round": best, "metric": "accuracy", "value": max(values)}
    summary = json.loads((alone / "summary.json").read_text())["stages"]
    assert [stage["stopped_early"] for stage in summary] == [True, False]
    assert summary[0]["best"] == first[-1]["best"]
    assert summary[0]["eval"] == first[best - 1]["eval"]
    # A run that ends there by itself has the same weights.
    settings = [f"rounds={best}", "keep_best=false", f"early_stopping_rounds={best - 1}"]
    more = [word for setting in settings for word in ("-s", f"stages.first.{setting}")]
    simulate(alone.parent / "hasty.toml", tmp_path / "short", *more)
    assert sha256_of(tmp_path / "short" / RESULTS[0]) == sha256_of(alone / RESULTS[0])


def test_stopping_is_told(alone: Path, tmp_path: Path) -> None:
    said = wildflower("simulate", alone.parent / "hasty.toml", "--out", tmp_path / "run").stdout
    assert "first: stopped after round " in said
    assert "its weights are kept" in said
    (row,) = [line for line in said.splitlines() if line.split()[:2] == ["first", "train"]]
    assert "best in round " in row
    assert "stopped early" in row


def killed_at(place: int, config: Path, out: Path, *, before: bool) -> None:
    first = KILL_AT_WRITE.format(place=place, before=before)
    done = wildflower("simulate", config, "--out", out, first=first)
    assert done.returncode == -signal.SIGKILL, (place, done.stderr)


def same(out: Path, alone: Path) -> None:
    """Asserts that both runs have the same weights, and were told the same of each round."""
    for name in RESULTS:
        assert sha256_of(out / name) == sha256_of(alone / name)
    told = [
        [(row["stage"], row["round"], row["eval"], row["best"]) for row in map(json.loads, lines)]
        for lines in (lines_of(out), lines_of(alone))
    ]
    assert told[0] == told[1]


# Files: config, manifest, checkpoints of the first stage, its weights, 2 checkpoints, weights, ...
PLACES = [(place, before) for place in range(3, 15) for before in (True, False)]
FEW = [(6, False), (8, True)]


@pytest.mark.parametrize(
    ("place", "before"),
    [
        *FEW,
        *(pytest.param(*own, marks=pytest.mark.slow) for own in PLACES if own not in FEW),
    ],
)
def test_killed_at_any_write_it_stops_in_the_same_round_with_the_same_bytes(
    place: int, before: bool, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    killed_at(place, alone.parent / "hasty.toml", out, before=before)
    done = wildflower("simulate", out, "--resume")
    assert done.returncode == 0, done.stderr
    same(out, alone)


def test_from_the_checkpoint_before_a_damaged_one_it_stops_in_the_same_round(
    alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    killed_at(7, alone.parent / "hasty.toml", out, before=False)
    newest = checkpoint_files(out / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert wildflower("simulate", out, "--resume").returncode == 0
    same(out, alone)


def test_a_line_that_vanishes_while_the_run_goes_on_is_told(alone: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(alone, folder.path)
    rest = [line for line in lines_of(alone) if json.loads(line)["stage"] != "first"]
    folder.metrics_file.write_text("".join(f"{line}\n" for line in rest))
    with pytest.raises(CheckpointError, match="stage 'first', round 1, is not in it"):
        folder.all_records()


def test_where_the_server_lacks_the_head_clients_decide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digits.toml").write_text(DIGITS)
    settings = ["stages.train.personal=['head.']", "evaluate.clients_fraction=1.0"]
    settings.append("stages.train.early_stopping_rounds=3")
    more = [word for setting in settings for word in ("-s", setting)]
    simulate(tmp_path / "digits.toml", tmp_path / "run", *more)
    lines = [json.loads(line) for line in lines_of(tmp_path / "run")]
    assert [line["eval"] for line in lines] == [None] * len(lines)
    values = [line["clients_eval"]["accuracy"] for line in lines]
    assert lines[-1]["best"]["value"] == max(values)
    assert command(["export", str(tmp_path / "run")]) == 2
    assert "stages.train.personal: contradicts export" in capsys.readouterr().err


def test_where_only_clients_measure_they_decide(tmp_path: Path) -> None:
    (tmp_path / "digits.toml").write_text(DIGITS)
    settings = ["evaluate.data=none", "evaluate.clients_fraction=1.0"]
    settings += ["stages.train.local_learning_rate=0.5", "stages.train.keep_best=true"]
    more = [word for setting in settings for word in ("-s", setting)]
    simulate(tmp_path / "digits.toml", tmp_path / "run", *more)
    lines = [json.loads(line) for line in lines_of(tmp_path / "run")]
    values = [line["clients_eval"]["accuracy"] for line in lines]
    assert lines[-1]["best"]["value"] == max(values)
