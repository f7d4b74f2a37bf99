"""The documents: their commands exist, their files exist, their configs are valid."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import tomli_w

from benchmarks.learning import learn
from deploy.cli import run
from shared_models.config import BUILTIN, parse_config
from tests.conftest import ROOT

DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("k8s/*.md")])
COMMAND = re.compile(r"(?m)^(?:\| `)?(wildflower [^`|\n#]*)")
# Seconds at most, and no run folder needed.
LIGHT = ("models", "doctor", "data list", "data info", "data fetch digits")


def commands() -> list[str]:
    found = [line.strip() for doc in DOCS for line in COMMAND.findall(doc.read_text())]
    return sorted(set(found))


def test_the_documents_have_commands() -> None:
    assert len(commands()) > 8


@pytest.mark.parametrize("command", commands())
def test_every_command_exists_with_the_options_shown(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)[1:]
    verb = words[:2] if words[0] in {"data", "k8s", "server"} else words[:1]
    assert run([*verb, "--help"]) == 0
    known = capsys.readouterr().out
    assert all(word in known for word in words if word.startswith("-"))


@pytest.mark.parametrize("command", [c for c in commands() if c[11:].startswith(LIGHT)])
def test_light_commands_run(command: str) -> None:
    assert run(shlex.split(command)[1:]) == 0


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.name)
def test_files_that_a_document_names_are_there(doc: Path) -> None:
    text = doc.read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`?((?:examples|docs|shared_models)/[\w./-]+\.\w+)", text)
    assert all((doc.parent / path).exists() for path in linked)
    assert all((ROOT / path).exists() for path in named)


def configs(*docs: Path) -> list[str]:
    """A block may show a table or two of a config: the rest is the built-in one's."""
    blocks = [b for doc in docs for b in re.findall(r"(?s)```toml\n(.*?)```", doc.read_text())]
    return [tomli_w.dumps({**tomllib.loads(BUILTIN), **tomllib.loads(block)}) for block in blocks]


def test_the_configs_in_the_docs_are_valid() -> None:
    assert len(configs(ROOT / "docs" / "run.md")) > 2
    for text in configs(*DOCS):
        assert parse_config(text, "docs").learning_stages


@pytest.mark.parametrize("text", configs(ROOT / "docs" / "algorithms.md"))
def test_the_configs_of_the_algorithms_run(text: str) -> None:
    config = parse_config(text, "docs/algorithms.md")
    curve = learn(config)
    assert curve.broke is None
    # Without its personal layers there is nothing that the server could measure.
    assert len(curve.accuracy) == (0 if config.learning_stages[0].personal else 3)
