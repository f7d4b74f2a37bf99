"""The server evaluates while the next round trains: nothing but the time differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.cli import run
from server.manifest import Engine
from server.stage import must_wait
from tests.in_memory import config_of
from tests.test_runs import lines_of, simulate

# One step, and no logit is finite any more; each update is still fit to be added.
DIVERGING = ("-s", "stages.train.server_learning_rate=1e38")


@pytest.fixture(params=["behind", "at-once"])
def when(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways, whatever the engine."""
    monkeypatch.setattr("server.stage.must_wait", lambda *_: request.param == "at-once")
    return str(request.param)


def test_evaluated_behind_or_at_once_a_run_is_the_same(
    digits_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations, weights = [], []
    for at_once in (True, False):
        monkeypatch.setattr("server.stage.must_wait", lambda *_, wait=at_once: wait)
        out = tmp_path / str(at_once)
        weights.append(simulate(digits_toml, out, "-s", "stages.train.keep_best=true"))
        evaluations.append([json.loads(line)["eval"] for line in lines_of(out)])
    assert weights[0] == weights[1]
    assert evaluations[0] == evaluations[1]
    assert None not in evaluations[0]


def test_it_waits_where_it_decides_or_would_be_in_the_way() -> None:
    stage, early = (
        config_of(*more).learning_stages[0]
        for more in ([], ["stages.train.early_stopping_rounds=2"])
    )
    assert not must_wait(stage, Engine("ray", 2))
    assert must_wait(stage, Engine("inline"))
    assert must_wait(early, Engine("ray", 2))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["stages.train.rounds=1"],
        ["evaluate.clients_fraction=1.0"],
    ],
    ids=["next-round-fails", "no-next-round", "clients-fail"],
)
def test_a_model_that_diverged_is_the_error_whatever_fails_after_it(
    settings: list[str],
    when: str,
    digits_toml: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / when
    more = [word for setting in settings for word in ("-s", setting)]
    arguments = ["simulate", str(digits_toml), "--out", str(out), *DIVERGING, *more]
    assert run(arguments) == 1
    assert "stage 'train', round 1: the model diverged" in capsys.readouterr().err
    assert not list((out / "checkpoints").glob("*")), "a round that diverged is not kept"
    assert run([*arguments, "--resume"]) == 1
    assert "stage 'train', round 1: the model diverged" in capsys.readouterr().err
