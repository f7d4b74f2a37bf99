"""The examples as pages: what stands at the head of each file, the file, how to run it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from shared_models.config import parse_config

_FLEET = "wildflower submit examples/{} --server HOST:8000 --credentials DIR"
_HERE = "wildflower simulate examples/{}"


def pages(folder: Path) -> Mapping[str, str]:
    """Returns the pages by name; `index.md` lists the others."""
    found = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    made = {f"{name}.md": page(path) for name, path in found.items()}
    rows = "".join(f"| [{name}]({name}.md) | {_row(path)} |\n" for name, path in found.items())
    table = f"| example | task | stages | what it is |\n|---|---|---|---|\n{rows}"
    books = "".join(f"* {notebook(path)}\n" for path in sorted(folder.glob("*.ipynb")))
    told = f"Each is one file in `examples/`.\n\n{table}\n## Notebooks\n\n{books}"
    return {"index.md": f"# Examples\n\n{told}", **made}


def notebook(path: Path) -> str:
    """Returns a line about a notebook: its title, and what its first cell says."""
    title, _, text = "".join(json.loads(path.read_text())["cells"][0]["source"]).partition("\n\n")
    return f"`examples/{path.name}`: {title.removeprefix('# ')}. {text}"


def page(path: Path) -> str:
    """Returns the page of an example."""
    text = path.read_text()
    command = (_FLEET if path.stem.endswith("-fleet") else _HERE).format(path.name)
    head, body = about(text), re.sub(r"\A(#[^\n]*\n)+", "", text).strip()
    how = "" if f"\n{command}\n" in head else f"\n\n```\n{command}\n```"
    return f"# {path.stem}\n\n{head}{how}\n\n```toml\n{body}\n```\n"


def about(text: str) -> str:
    r"""Returns the comment at the head of a config as Markdown; commands in it become code.

    >>> about("# A run.\n# First:\n#   make demo\nseed = 0")
    'A run.\nFirst:\n\n```\nmake demo\n```'
    """
    head = re.match(r"(#[^\n]*\n)*", text)
    lines = (
        [line.removeprefix("#").removeprefix(" ") for line in head[0].splitlines()] if head else []
    )
    told: list[str] = []
    for line in lines:
        if line.startswith("  ") and not (told and told[-1].endswith("\n```")):
            told.append(f"\n```\n{line.strip()}\n```")
        elif line.startswith("  "):
            told[-1] = told[-1].removesuffix("```") + f"{line.strip()}\n```"
        else:
            told.append(("\n" if told and told[-1].endswith("```") else "") + line)
    return "\n".join(told)


def _row(path: Path) -> str:
    text = path.read_text()
    config = parse_config(text, path.name)
    kinds = ", ".join(dict.fromkeys(stage["kind"] for stage in tomllib.loads(text)["stages"]))
    first = about(text).split("\n```", 1)[0].replace("\n", " ")
    sentence = re.split(r"(?<=\.) (?=[A-Z])", first)[0]
    return f"{config.task} | {kinds} | {sentence}"
