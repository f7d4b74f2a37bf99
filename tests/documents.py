"""What is in a document: blocks of code, the files that it shows, the commands that it gives."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from deploy.cli import app
from tests.conftest import ROOT

DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("k8s/*.md")])
# What a line of a block begins with when it is a command, perhaps after `$ ` and variables.
PROGRAMS = {
    "wildflower", "make", "python", "python3", "pytest", "flwr", "kubectl", "kind", "curl",
    "export", "rm", "unzip", "printf", "openssl", "sudo", "ssh", "scp", "chmod", "tensorboard",
}  # fmt: skip
_BLOCK = re.compile(r"(?ms)^```(\w*)\n(.*?)^```")
_COMMAND = re.compile(r"(?:\$ )?((?:[A-Z_]+=\S+ )*)(\S+)(.*)", re.DOTALL)
_FILE = re.compile(r"# ([\w-]+\.(?:py|toml))\n")
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, empty for commands and for what they print."""

    doc: Path
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its commands, each on one line; a block of another kind has none."""
        if self.language:
            return []
        joined = self.text.replace("\\\n", " ")
        lines = [re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()]
        return [line for line in lines if program_of(line) in PROGRAMS]


def program_of(line: str) -> str | None:
    """Returns which program a line starts, if it is a command."""
    found = _COMMAND.fullmatch(line)
    return found[2].rpartition("/")[2] if found else None


def blocks(*docs: Path) -> list[Block]:
    """Returns the blocks of documents."""
    return [Block(doc, *found) for doc in docs for found in _BLOCK.findall(doc.read_text())]


def files_of(doc: Path) -> Mapping[str, str]:
    """Returns the files that a document shows: blocks whose first line is their name."""
    named = ((_FILE.match(block.text), block.text) for block in blocks(doc))
    return {found[1]: text for found, text in named if found}


def ours(line: str) -> Iterator[list[str]]:
    """Yields the words of each `wildflower` in a command, which may be one end of a pipe.

    >>> list(ours("A=1 wildflower k8s render --gpu 2> log | kubectl -n wildflower apply -f -"))
    [['k8s', 'render', '--gpu']]
    """
    shell = shlex.shlex(re.sub(r"\d?>+ ?\S+", "", line), posix=True, punctuation_chars="|&;")
    shell.whitespace_split = True
    for is_operator, group in itertools.groupby(shell, key=lambda word: set(word) <= set("|&;")):
        words = list(itertools.dropwhile(lambda word: re.match(r"\$$|[A-Z_]+=", word), group))
        if not is_operator and words and words[0].rpartition("/")[2] == "wildflower":
            yield words[1:]


@functools.cache
def _command_line() -> Any:
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """Parses a command of ours without running it; raises click's own errors."""
    verb = _command_line()
    rest = list(words)
    while (own := getattr(verb, "commands", None)) is not None and rest:
        if rest[0].startswith("--"):
            break
        name = rest.pop(0)
        if name not in own:
            raise KeyError(f"there is no verb {name!r}")
        verb = own[name]
    verb.make_context("wildflower", rest, resilient_parsing="--help" in rest or not rest)


def done(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of a page in a folder, with the programs of this environment."""
    program, *words = shlex.split(command)
    return subprocess.run(
        [str(_BIN / program), *words], cwd=folder, capture_output=True, text=True, check=False
    )
