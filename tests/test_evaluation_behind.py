"""The server evaluates while the next round trains: nothing but the time differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.cli import run
from tests.test_runs import lines_of, simulate

# One step, and no logit is finite any more; each update is still fit to be added.
DIVERGING = ("-s", "stages.train.server_learning_rate=1e38")


def test_evaluated_behind_or_at_once_a_run_is_the_same(digits_toml: Path, tmp_path: Path) -> None:
    # A stage that may end early waits for each evaluation.
    waits = ["-s", "stages.train.early_stopping_rounds=100"]
    behind = simulate(digits_toml, tmp_path / "behind")
    assert simulate(digits_toml, tmp_path / "at-once", *waits) == behind
    evaluations = [
        [json.loads(line)["eval"] for line in lines_of(tmp_path / name)]
        for name in ("behind", "at-once")
    ]
    assert evaluations[0] == evaluations[1]
    assert None not in evaluations[0]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["stages.train.rounds=1"],
        ["evaluate.clients_fraction=1.0"],
        ["stages.train.early_stopping_rounds=2"],
    ],
    ids=["next-round-fails", "no-next-round", "clients-fail", "at-once"],
)
def test_a_model_that_diverged_is_the_error_whatever_fails_after_it(
    settings: list[str], digits_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = [word for setting in settings for word in ("-s", setting)]
    arguments = ["simulate", str(digits_toml), "--out", str(out), *DIVERGING, *more]
    assert run(arguments) == 1
    assert "stage 'train', round 1: the model diverged" in capsys.readouterr().err
    assert not list((out / "checkpoints").glob("*")), "a round that diverged is not kept"
    assert run([*arguments, "--resume"]) == 1
    assert "stage 'train', round 1: the model diverged" in capsys.readouterr().err
