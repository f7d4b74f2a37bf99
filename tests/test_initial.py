"""Runs that begin with another run's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deploy.cli import run
from server.app import _open
from server.initial import initial
from server.run_folder import RunFolder
from shared_models.arrays import load_arrays, save_arrays
from shared_models.config import Config, parse_config, to_toml
from shared_models.errors import ConfigError, InputError
from shared_models.init_weights import settled_init
from shared_models.tasks import load_task
from tests.conftest import DIGITS

TASK = load_task("digits-cnn")
STAGE = 'resets = ["head."]\nfreezes = ["encoder."]\n'
GOES_ON = DIGITS.replace("rounds = 4", "rounds = 3") + STAGE


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    """Weights of a run that somebody else has made."""
    path = tmp_path / "trunk.safetensors"
    save_arrays(path, TASK.build(7))
    return path


def going_on(init: Path, text: str = GOES_ON) -> Config:
    return parse_config(f'init = "{init}"\n{text}', "x")


def simulate(folder: Path, config: str, *options: str) -> int:
    (folder / "a.toml").write_text(config)
    return run(["simulate", str(folder / "a.toml"), "--out", str(folder / "run"), *options])


def test_a_new_head_learns_on_a_trunk_that_stays(trunk: Path, tmp_path: Path) -> None:
    assert simulate(tmp_path, f'init = "{trunk}"\n{GOES_ON}') == 0
    folder, before = RunFolder(tmp_path / "run"), load_arrays(trunk)
    after = load_arrays(folder.model_file)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == name.startswith("encoder.")
    first, *_, last = (record.eval for record in folder.records())
    assert first is not None
    assert last is not None
    assert last["loss"] < first["loss"]
    manifest, settled = folder.manifest(), settled_init(going_on(trunk))
    assert manifest["init_sha256"] == folder.config().init_sha256 == settled.init_sha256


def test_a_run_is_one_of_its_very_weights(trunk: Path, tmp_path: Path) -> None:
    text = f'init = "{trunk}"\n{GOES_ON}'
    assert simulate(tmp_path, text) == 0
    told = (tmp_path / "run" / "model.safetensors").read_bytes()
    moved = trunk.rename(tmp_path / "moved.safetensors")  # the same bytes: the same run
    assert simulate(tmp_path, text.replace(trunk.name, moved.name), "--resume") == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == told
    save_arrays(moved, TASK.build(8))
    assert simulate(tmp_path, text.replace(trunk.name, moved.name), "--resume") == 2


def test_weights_that_changed_or_are_missing_are_told(trunk: Path, tmp_path: Path) -> None:
    settled = settled_init(going_on(trunk))
    save_arrays(trunk, TASK.build(8))
    with pytest.raises(InputError, match=r"init: .*trunk.* is not what the run began with"):
        initial(settled)
    with pytest.raises(InputError, match=r"init: .*nobody.*read where the server runs"):
        settled_init(going_on(tmp_path / "nobody"))
    trunk.write_bytes(b"no")
    with pytest.raises(InputError, match=r"init: .*cannot be read as safetensors"):
        initial(going_on(trunk))


def test_weights_that_are_no_numbers_are_told_before_anybody_is_asked(trunk: Path) -> None:
    arrays = TASK.build(7)
    arrays["encoder.conv.bias"][0] = torch.nan
    save_arrays(trunk, arrays)
    with pytest.raises(InputError, match=r"init: .*trunk.*encoder\.conv\.bias holds NaN"):
        initial(going_on(trunk))


def test_a_server_that_has_no_such_weights_makes_no_run_of_it(tmp_path: Path) -> None:
    settings = {"config": to_toml(going_on(tmp_path / "elsewhere"))}
    with pytest.raises(InputError, match="no such file here; it is read where the server runs"):
        _open(settings, tmp_path / "run", lambda _: None)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_named_unless_it_begins_anew(trunk: Path) -> None:
    arrays = TASK.build(7)
    arrays["head.weight"] = torch.zeros(3, 32)
    del arrays["head.bias"]
    save_arrays(trunk, arrays)
    plain = GOES_ON.replace('resets = ["head."]\n', "")
    with pytest.raises(InputError, match=r'head.weight has to have shape .*resets = \["head."\]'):
        initial(going_on(trunk, plain))
    found = initial(going_on(trunk))
    assert torch.equal(found["encoder.conv.weight"], arrays["encoder.conv.weight"])
    assert found["head.weight"].shape == (10, 32)


def test_only_weights_of_another_run_let_a_first_stage_reset_or_finetune(trunk: Path) -> None:
    tuned = DIGITS.replace('kind = "train"', 'kind = "finetune"')
    assert going_on(trunk, tuned).learning_stages[0].kind == "finetune"
    with pytest.raises(ConfigError, match="resets: there is no stage before it"):
        parse_config(GOES_ON, "x")
    with pytest.raises(ConfigError, match="init_sha256: is for init"):
        parse_config(f'init_sha256 = "{"0" * 64}"\n{DIGITS}', "x")


def test_a_student_of_a_run_is_the_student_of_the_stage_that_made_it(tmp_path: Path) -> None:
    once = DIGITS.replace("rounds = 4", "rounds = 1")
    head, _, stage = once.partition("[[stages]]")
    taught = f'[[stages]]{stage}student = "digits-cnn"\n'.replace('"train"', '"distill"')
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    whole.mkdir()
    alone.mkdir()
    assert simulate(whole, once + taught) == 0
    text = f'init = "{whole / "run" / "train.safetensors"}"\n{head}{taught}'
    assert simulate(alone, text) == 0
    made = {(folder / "run" / "model.safetensors").read_bytes() for folder in (whole, alone)}
    assert len(made) == 1
    with pytest.raises(InputError, match=r"init: .* has to have shape"):
        initial(parse_config(text.replace('task = "digits-cnn"', 'task = "mnist-cnn"'), "x"))
