"""Stages that go on from another's weights: what they take over, reset and freeze."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deploy.cli import run
from deploy.simulate import check
from server.app import _open
from server.events import Event, Notice
from server.handover import handed_over, handover_notes
from server.run_folder import RunFolder
from shared_models.arrays import Arrays, load_arrays, roles_of
from shared_models.config import Config, TrainStage, parse_config, read_config, to_toml
from shared_models.errors import ConfigError, InputError
from shared_models.tasks import load_task
from tests.conftest import DIGITS

TASK = load_task("digits-cnn")
FINETUNE = """
[[stages]]
kind = "finetune"
rounds = 2
clients_per_round = 6
local_learning_rate = 0.1
"""


def config(extra: str = "") -> Config:
    return parse_config(DIGITS.replace("rounds = 4", "rounds = 2") + FINETUNE + extra, "x")


def stage(extra: str) -> TrainStage:
    return config(extra).learning_stages[1]


def same(left: Arrays, right: Arrays, prefix: str) -> bool:
    names = [name for name in left if name.startswith(prefix)]
    assert names
    return all(torch.equal(left[name], right[name]) for name in names)


def test_all_is_taken_over_where_nothing_is_said() -> None:
    before = TASK.build(5)
    assert same(handed_over(stage(""), TASK, before, 0), before, "")


@pytest.mark.parametrize("said", ['resets = ["head."]', 'takes = ["encoder."]'])
def test_what_is_reset_is_new_and_depends_on_the_seed_alone(said: str) -> None:
    before = TASK.build(5)
    found = handed_over(stage(said), TASK, before, 0)
    assert same(found, before, "encoder.")
    assert not same(found, before, "head.")
    assert same(found, handed_over(stage(said), TASK, TASK.build(6), 0), "head.")
    assert not same(found, handed_over(stage(said), TASK, before, 1), "head.")


@pytest.mark.parametrize("key", ["takes", "resets"])
def test_a_prefix_of_nobody_is_named(key: str) -> None:
    with pytest.raises(InputError, match=f"{key}: no array begins"):
        handed_over(stage(f'{key} = ["tail."]'), TASK, TASK.build(5), 0)
    with pytest.raises(InputError, match="freezes: no array begins"):
        roles_of(TASK.model(), (), ("tail.",))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            'takes = ["encodr."]',
            r"stages.finetune.takes: no array begins with 'encodr.'; there are",
        ),
        ('takes = ["projector."]', r"stages.finetune.takes: no array begins with 'projector.'"),
        ('resets = ["hed."]', "stages.finetune.resets: no array begins with 'hed.'"),
        ('freezes = ["hed."]', "stages.finetune.freezes: no array begins with 'hed.'"),
        (
            'takes = ["encoder."]\nresets = ["encoder."]',
            "finetune.takes: nothing is taken over: resets names all of it",
        ),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_trained(
    said: str, told: str, tmp_path: Path
) -> None:
    pretrain = 'kind = "pretrain"\nobjective = "simclr"'
    path = tmp_path / "wrong.toml"
    path.write_text(DIGITS.replace('kind = "train"', pretrain) + FINETUNE + said)
    with pytest.raises(InputError, match=told):
        check(read_config(path), tmp_path / "run")


@pytest.mark.parametrize(
    ("said", "frozen"),
    [
        ('freezes = ["encoder."]', []),
        ('freezes = ["encoder.", "head."]', ["head."]),
        ('resets = ["encoder."]\nfreezes = ["encoder."]', ["encoder."]),
        ('takes = ["encoder.", "encoder.dense."]\nresets = ["encoder.dense."]', []),
    ],
)
def test_what_is_frozen_and_nobody_has_learnt_is_noted(said: str, frozen: list[str]) -> None:
    pretrain = 'kind = "pretrain"\nobjective = "simclr"'
    own = parse_config(DIGITS.replace('kind = "train"', pretrain) + FINETUNE + said, "x")
    notes = handover_notes(own)
    assert len(notes) == len(frozen)
    assert all(repr(prefix) in note for prefix, note in zip(frozen, notes, strict=True))


def test_the_server_s_app_says_so_before_the_run_is_there(tmp_path: Path) -> None:
    pretrain = 'kind = "pretrain"\nobjective = "simclr"'
    text = DIGITS.replace('kind = "train"', pretrain) + FINETUNE
    told: list[Event] = []
    _open({"config": text + 'freezes = ["encoder.", "head."]'}, tmp_path / "noted", told.append)
    assert ["'head.' as random" in own.text for own in told if isinstance(own, Notice)] == [True]
    with pytest.raises(InputError, match=r"no array begins with 'hed.'"):
        _open({"config": text + 'takes = ["hed."]'}, tmp_path / "refused", told.append)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ('freezes = ["encoder."]', "freezes: 'encoder.' leaves nothing to pretrain"),
        ("batch_size = 1", "batch_size: 'simclr' tells an example from others"),
    ],
)
def test_what_contradicts_itself_is_refused(first: str, told: str) -> None:
    pretrain = f'kind = "pretrain"\nobjective = "simclr"\n{first}'
    with pytest.raises(ConfigError, match=told):
        parse_config(DIGITS.replace('kind = "train"', pretrain) + FINETUNE, "x")


@pytest.mark.parametrize("objective", ["fedavg", "fedprox", "scaffold"])
def test_what_is_frozen_stays_and_the_rest_learns(objective: str, tmp_path: Path) -> None:
    frozen = config(f'name = "tune"\nfreezes = ["encoder."]\nobjective = "{objective}"\n')
    path = tmp_path / "tune.toml"
    path.write_text(to_toml(frozen))
    assert run(["simulate", str(path), "--out", str(tmp_path / "run")]) == 0
    folder = RunFolder(tmp_path / "run")
    before, after = (load_arrays(folder.stage_file(name)) for name in ("train", "tune"))
    assert same(before, after, "encoder.")
    assert not same(before, after, "head.")
    assert [told["kind"] for told in folder.summary()["stages"]] == ["train", "finetune"]


def test_a_first_stage_has_nothing_to_go_on_from() -> None:
    first = DIGITS.replace('kind = "train"', 'kind = "finetune"')
    with pytest.raises(ConfigError, match="finetune stage needs a stage that learns before"):
        parse_config(first, "x")
    with pytest.raises(ConfigError, match="takes: there is no stage before it"):
        parse_config(DIGITS, "x", overrides=['stages.train.takes=["encoder."]'])
