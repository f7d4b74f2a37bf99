"""A user's own task: one file, `module:attribute`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

WILDFLOWER = str(Path(sys.executable).parent / "wildflower")
BLOCKS = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "docs" / "run.md").read_text())
MINE = next(block for block in BLOCKS if "TASK = " in block)
CONFIG = """
name = "mine"
task = "mine:TASK"

[data]
clients = 4

[plan]
trainer = "loop"

[[stages]]
name = "train"
kind = "train"
rounds = 3
clients_per_round = 4
local_learning_rate = 0.1
"""


def simulate(folder: Path, source: str | None, config: str = CONFIG) -> tuple[int, str]:
    if source is not None:
        (folder / "mine.py").write_text(source)
    (folder / "config.toml").write_text(config)
    command = [WILDFLOWER, "simulate", "config.toml", "--out", "run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_task_in_a_file_of_ones_own_is_trained(tmp_path: Path) -> None:
    assert simulate(tmp_path, MINE) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["params"] == 650
    assert summary["stages"][0]["eval"]["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("source", "task", "told"),
    [
        (None, "mine:TASK", "task 'mine:TASK': there is no mine.py in"),
        (MINE, "mine:OTHER", "task 'mine:OTHER': mine.py has no 'OTHER'"),
        ("TASK = 7", "mine:TASK", "task 'mine:TASK': is of type int, not a Task"),
        ("1 / 0", "mine:TASK", "mine.py does not run: ZeroDivisionError: division by zero"),
        (MINE, "mine.TASK", "task: 'mine.TASK' does not exist"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    tmp_path: Path, source: str | None, task: str, told: str
) -> None:
    code, error = simulate(tmp_path, source, CONFIG.replace("mine:TASK", task))
    assert code == 2
    assert len(error.splitlines()) == 1
    assert told in error


def test_a_file_that_is_called_like_a_module_that_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text(MINE)
    code, error = simulate(tmp_path, None, CONFIG.replace("mine:TASK", "colorsys:TASK"))
    assert code == 2
    assert "there is a module 'colorsys' already; rename the file" in error
