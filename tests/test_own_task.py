"""A user's own task: one file, `module:attribute`."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared_models.errors import InputError
from shared_models.task import Task
from shared_models.tasks.trial import try_out
from tests.conftest import ROOT

BIN = Path(sys.executable).parent
BLOCKS = re.findall(r"(?s)```(\w*)\n(.*?)```", (ROOT / "docs" / "your-own-task.md").read_text())
FILES = {text.split("\n", 1)[0].removeprefix("# "): text for kind, text in BLOCKS if kind}
COMMANDS = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]
MINE = FILES["moves.py"]
CONFIG = FILES["moves.toml"].rpartition("\n[[stages]]")[0]  # without the export


def said(folder: Path, command: str) -> tuple[int, str, str]:
    """Runs a line of the page, with the programs of this environment."""
    program, *words = shlex.split(command)
    done = subprocess.run(
        [str(BIN / program), *words], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def simulate(folder: Path, source: str | None, config: str) -> tuple[int, str]:
    if source is not None:
        (folder / "mine.py").write_text(source)
    (folder / "config.toml").write_text(config)
    code, _, error = said(folder, "wildflower simulate config.toml --out run")
    return code, error


def test_the_page_s_model_learns_from_its_own_data(tmp_path: Path) -> None:
    (tmp_path / "make_data.py").write_text(FILES["make_data.py"])
    assert said(tmp_path, "python make_data.py")[0] == 0
    config = CONFIG.replace("moves:TASK", "mine:TASK").replace(
        "[data]", "plan.trainer = 'loop'\n[data]"
    )
    assert simulate(tmp_path, MINE, config) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["clients"] == 12
    assert summary["stages"][0]["eval"]["accuracy"] > 0.9


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    told = {}
    for command in COMMANDS:
        code, told[command], error = said(tmp_path, command)
        assert (code, error) == (0, ""), command
    assert len(told) == 5
    assert len(re.findall(r"(?m)^ +\d  (still|walking|running) +0\.\d", told[COMMANDS[-1]])) == 3


@pytest.mark.parametrize(
    ("source", "task", "told"),
    [
        (None, "mine:TASK", "task 'mine:TASK': there is no mine.py in"),
        (MINE, "mine:OTHER", "task 'mine:OTHER': mine.py has no 'OTHER'"),
        ("TASK = 7", "mine:TASK", "task 'mine:TASK': is of type int, not a Task"),
        ("1 / 0", "mine:TASK", "mine.py does not run: ZeroDivisionError: division by zero"),
        ("exit(3)", "mine:TASK", "mine.py does not run: SystemExit: 3"),
        (MINE, "mine.py:TASK", "one of your own is called 'module:NAME', without .py"),
        (MINE, "mine.TASK", "task: 'mine.TASK' does not exist"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    tmp_path: Path, source: str | None, task: str, told: str
) -> None:
    code, error = simulate(tmp_path, source, CONFIG.replace("moves:TASK", task))
    assert code == 2
    assert len(error.splitlines()) == 1
    assert told in error


FORWARD = "return self.head(self.encoder(x.transpose(1, 2)))"
LABELS = 'labels=("still", "walking", "running")'


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("nn.Linear(160, 32)", "nn.Linear(150, 32)", r", line 22: RuntimeError: mat1 and mat2"),
        (
            FORWARD,
            "raise OSError('no sensor')",
            r", line 22: OSError: no sensor \(the model was sh",
        ),
        (FORWARD, "return x, x", r"shown \(2, 50, 3\) and answered with a tuple, not a tensor"),
        ("nn.Linear(32, 3)", "nn.Linear(32, 4)", r"answered \(2, 4\); with 3 .* answer \(2, 3\)"),
        ("nn.Linear(32, 3)", "nn.Linear(32, '3')", r", line 19: TypeError: .*make_model"),
        (FORWARD, f"{FORWARD} * nn.Dropout()(x[:, :1, 0])", "draws from torch's generator, as nn"),
        (FORWARD, "exit(3)", r", line 22: SystemExit: 3"),
        ("InputSpec(shape=(50, 3), mean=(0.0,), std=(1.0,))", "(50, 3)", "not an InputSpec"),
        ("    Moves,\n", "    Moves(),\n", "make_model is a model.* give its class, Moves"),
        (LABELS, 'labels=("still")', r"labels are to be a tuple .* \(\"one\",\), not 'still'"),
        (LABELS, 'labels=("still", "still", "running")', "the label 'still' is there twice"),
    ],
)
def test_what_is_wrong_with_its_model_is_told_with_its_place(
    right: str, wrong: str, told: str
) -> None:
    assert MINE.count(right) == 1
    try_out("moves:TASK", task_of(MINE))
    with pytest.raises(InputError, match=rf"^task 'moves:TASK': .*{told}"):
        try_out("moves:TASK", task_of(MINE.replace(right, wrong)))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"loss": lambda outputs, _: outputs[:, 0]}, "loss is to return one number"),
        ({"loss": lambda *_: None}, "loss is to return one number"),
        ({"metrics": lambda *_: None}, "AttributeError: 'NoneType'"),
        ({"metrics": lambda outputs, _: {"a": outputs.mean()}}, r"a value an example, .*'a': \(\)"),
        ({"label_shape": 5}, "TypeError: .*label_shape"),
    ],
)
def test_what_it_measures_by_is_tried(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=f"^task 'moves:TASK': moves.py.*{told}"):
        try_out("moves:TASK", replace(task_of(MINE), **changed))


def task_of(source: str) -> Task:
    made: dict[str, Any] = {}
    exec(compile(source, "moves.py", "exec"), made)  # noqa: S102 - as `load_own` does
    task: Task = made["TASK"]
    return task


def test_a_model_that_does_not_run_leaves_no_run(tmp_path: Path) -> None:
    (tmp_path / "make_data.py").write_text(FILES["make_data.py"])
    assert said(tmp_path, "python make_data.py")[0] == 0
    source = MINE.replace("nn.Linear(160, 32)", "nn.Linear(150, 32)")
    code, error = simulate(tmp_path, source, CONFIG.replace("moves:TASK", "mine:TASK"))
    assert (code, len(error.splitlines())) == (2, 1)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_called_like_a_module_that_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text(MINE)
    code, error = simulate(tmp_path, None, CONFIG.replace("moves:TASK", "colorsys:TASK"))
    assert code == 2
    assert "there is a module 'colorsys' already; rename the file" in error
