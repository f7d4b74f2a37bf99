"""The command line as a page: every verb with its help and its options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from deploy.cli import app


def page() -> str:
    """Returns the page as Markdown."""
    intro = (
        "# Command line\n\nMade from the code. Each verb has `--help`, and `--json` where it "
        "answers a question. Exit codes: 0 done, 1 it failed, 2 the input is wrong, "
        "130 interrupted.\n"
    )
    return "\n".join([intro, *(section(name, verb) for name, verb in verbs())])


def verbs() -> Iterator[tuple[str, Any]]:
    """Yields each verb with its name, like `server start`."""
    yield from _below(typer.main.get_command(app), "")


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    own = getattr(command, "commands", None)
    if own is None:
        yield name.strip(), command
        return
    for part, verb in own.items():
        yield from _below(verb, f"{name} {part}")


def section(name: str, verb: Any) -> str:
    """Returns what is told of a verb."""
    arguments = [p for p in verb.params if p.param_type_name == "argument"]
    options = [p for p in verb.params if p.param_type_name == "option" and "--help" not in p.opts]
    usage = " ".join(["wildflower", name, *map(_usage, arguments), "[OPTIONS]"])
    rows = "".join(_row(option) for option in options)
    table = f"\n| option | meaning | default |\n|---|---|---|\n{rows}" if rows else ""
    return f"## wildflower {name}\n\n`{usage}`\n\n{_prose(verb.help or '')}\n{table}"


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    shown = f"{name}..." if argument.nargs == -1 else name
    return shown if argument.required else f"[{shown}]"


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    meaning = escaped(option.help or "")
    if choices := getattr(option.type, "choices", None):
        meaning += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    return f"| {names} | {meaning} | {_default(option)} |\n"


def _default(option: Any) -> str:
    if option.required:
        return "needed"
    if option.is_flag or option.default in (None, ()) or callable(option.default):
        return ""
    return f"`{option.default}`"


def _prose(help_: str) -> str:
    """Returns a docstring with its examples as code."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", help_)]
    return "\n\n".join(_paragraph(part) for part in paragraphs if part)


def _paragraph(text: str) -> str:
    told, found, command = text.partition(": wildflower ")
    return f"{told}:\n\n```\nwildflower {command}\n```" if found else text


def escaped(text: str) -> str:
    """Returns text for the cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("{", "&#123;").replace("<", "&lt;")
