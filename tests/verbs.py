"""What verbs say, for tests of the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.cli import run


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """Returns the JSON that a verb prints."""
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Returns the one line with which a verb fails."""
    capsys.readouterr()
    assert run(words) in {1, 2}
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line
