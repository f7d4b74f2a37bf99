"""The documents: their commands exist, their files exist, their code and configs are valid."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import tomli_w

from benchmarks.learning import learn
from deploy.cli import run
from deploy.reference import commands as command_page
from deploy.reference import configs as config_page
from deploy.reference import examples
from server.records import RoundRecord, Seconds
from shared_models.config import BUILTIN, Config, TrainStage, parse_config
from tests.conftest import ROOT
from tests.documents import DOCS, blocks, ours, parse, program_of

INLINE = re.compile(r"`(wildflower [a-z][^`\n]*)`")
COMMANDS = sorted({command for block in blocks(*DOCS) for command in block.commands})
OURS = sorted({tuple(words) for command in COMMANDS for words in ours(command)})
# Seconds at most, and neither a run folder nor a file of one's own needed.
LIGHT = (
    "models",
    "doctor",
    "data list",
    "data fetch digits",
    "data info watch",
    "data info digits",
)


def test_the_documents_have_commands() -> None:
    assert len(OURS) > 50


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_a_command_exists_with_its_options(words: tuple[str, ...]) -> None:
    parse([word for word in words if word != "..."])


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.name)
def test_commands_within_sentences_exist_too(doc: Path) -> None:
    for command in INLINE.findall(doc.read_text()):
        for words in ours(command):
            # A sentence may be about one option, not about all that are needed.
            with contextlib.suppress(click.MissingParameter, click.BadOptionUsage):
                parse(["1" if word == "N" else word for word in words if word != "..."])


def test_what_does_not_exist_is_seen() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["simulate", "digits.toml", "--twice"])
    with pytest.raises(click.BadParameter):
        parse(["simulate", "digits.toml", "--log-format", "xml"])
    with pytest.raises(KeyError):
        parse(["imagine", "digits.toml"])


def test_other_programs_are_asked_for_what_there_is() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    targets |= {f"image-{name}" for name in ("server", "client", "simulation")}
    for command in COMMANDS:
        words = shlex.split(command.removeprefix("$ "))
        if program_of(command) == "make":
            assert {w for w in words[1:] if re.fullmatch("[a-z-]+", w)} <= targets, command
        if words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), command
        if words[0] == "pytest":
            assert all((ROOT / w).exists() for w in words if w.startswith("tests/")), command


def test_blocks_of_commands_are_valid_shell() -> None:
    for block in blocks(*DOCS):
        if block.commands and not block.text.startswith("$ "):
            lines = [re.sub("[<>]", "", line) for line in block.text.splitlines()]
            told = subprocess.run(
                ["bash", "-n"], input="\n".join(lines), capture_output=True, text=True, check=False
            )
            assert told.returncode == 0, block.text


def test_blocks_of_code_are_valid() -> None:
    for block in blocks(*DOCS):
        assert block.language in {"", "toml", "python", "json"}, f"{block.doc}: {block.language}"
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "json" or block.text.startswith("{"):
            json.loads(block.text)


@pytest.mark.parametrize("words", [w for w in OURS if " ".join(w).startswith(LIGHT)], ids=" ".join)
def test_light_commands_run(words: tuple[str, ...]) -> None:
    assert run(words) == 0


def test_every_page_is_in_the_site_once() -> None:
    nav = re.findall(r"(?m)(\S+\.md)$", (ROOT / "mkdocs.yml").read_text())
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert pages <= set(nav)
    assert len(nav) == len(set(nav))


def test_the_reference_has_every_verb_and_every_key() -> None:
    page = command_page.page()
    assert all(f"## wildflower {verb}\n" in page for verb in ("simulate", "server start", "client"))
    assert "| `--metrics-port` |" in page
    told = config_page.page()
    for table in (Config, TrainStage):
        fields = set(table.model_fields) - {"data", "evaluate", "plan", "faults", "stages"}
        assert all(f"| `{key}` |" in told for key in fields)
    assert "| `alpha` | number over 0.0 to 1000000.0 | `0.5` | For `dirichlet`: small" in told


def test_every_example_has_a_page_that_says_what_it_is() -> None:
    pages = examples.pages(ROOT / "examples")
    for path in (ROOT / "examples").glob("*.toml"):
        assert f"[{path.stem}]({path.stem}.md)" in pages["index.md"]
        head = pages[f"{path.stem}.md"].split("```")[0]
        assert len(head.splitlines()) > 2, path


def test_the_page_of_run_folders_names_every_key_of_a_round() -> None:
    page = (ROOT / "docs/reference/run-folder.md").read_text()
    for key in (*RoundRecord.__dataclass_fields__, *Seconds.__dataclass_fields__):
        assert f"`{key}`" in page, key


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
