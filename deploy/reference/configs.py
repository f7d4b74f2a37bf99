"""The config as a page: every table and key, from the types that read it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deploy.reference.commands import escaped
from shared_models.config import (
    CalibrateStage,
    Config,
    Data,
    Evaluate,
    ExportStage,
    Faults,
    Plan,
    PruneStage,
    TrainStage,
)

_TABLES: Mapping[str, type[BaseModel]] = {
    "Top level": Config,
    "[data]": Data,
    "[evaluate]": Evaluate,
    "[plan]": Plan,
    "[faults]": Faults,
    '[[stages]] of kind "train", "finetune", "pretrain", "distill"': TrainStage,
    '[[stages]] of kind "prune"': PruneStage,
    '[[stages]] of kind "calibrate"': CalibrateStage,
    '[[stages]] of kind "export"': ExportStage,
}
_WORDS = {bool: "yes or no", int: "whole number", float: "number", str: "text"}
_BOUNDS = {
    Ge: ("ge", "from {}"),
    Gt: ("gt", "over {}"),
    Le: ("le", "to {}"),
    Lt: ("lt", "below {}"),
}
_LARGE = 2**31


def page() -> str:
    """Returns the page as Markdown."""
    intro = (
        "# Config\n\nMade from the types that read a config. A key that is not here is an error, "
        "which names the nearest one. On the command line a key is set by "
        "`-s stages.train.rounds=3`.\n"
    )
    return "\n".join([intro, *(section(title, table) for title, table in _TABLES.items())])


def section(title: str, table: type[BaseModel]) -> str:
    """Returns what is told of a table."""
    documented = docstrings(table)
    rows = [
        f"| `{name}` | {kind(field)} | {_default(field)} | {escaped(documented.get(name, ''))} |"
        for name, field in table.model_fields.items()
        if not _is_table(field)
    ]
    about = " ".join((inspect.getdoc(table) or "").split())
    head = "| key | what it takes | default | meaning |\n|---|---|---|---|"
    return f"## {title}\n\n{about}\n\n{head}\n" + "\n".join(rows) + "\n"


def docstrings(table: type[BaseModel]) -> Mapping[str, str]:
    """Returns what stands below each field of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(table))).body
    assert isinstance(body, ast.ClassDef)  # noqa: S101  the source of a class is one
    found, before = {}, None
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            before = statement.target.id
            continue
        match statement:
            case ast.Expr(ast.Constant(str() as text)) if before is not None:
                found[before] = text
        before = None
    return found


def kind(field: FieldInfo) -> str:
    """Returns what a field takes, in words."""
    words = " or ".join(dict.fromkeys(_words(field.annotation)))
    bounds = " ".join(_bounds(field.metadata))
    return escaped(" ".join(part for part in (words, bounds) if part))


def _words(annotation: Any) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is NoneType:
        return
    if origin is Annotated:
        inner = " or ".join(_words(arguments[0]))
        yield " ".join([inner, *_bounds(getattr(arguments[1], "metadata", arguments[1:]))])
    elif origin is Literal:
        yield ", ".join(f"`{value}`" for value in arguments)
    elif origin in (Union, UnionType):
        for own in arguments:
            yield from _words(own)
    elif origin in (tuple, list):
        inner = " or ".join(
            dict.fromkeys(w for own in arguments if own is not ... for w in _words(own))
        )
        yield f"list of {inner}"
    else:
        yield _WORDS.get(annotation, "text")


def _bounds(metadata: Any) -> Iterator[str]:
    for bound in metadata:
        name, template = _BOUNDS.get(type(bound), ("", ""))
        value = getattr(bound, name, None) if name else None
        if value is not None and value < _LARGE:
            yield template.format(value)


def _is_table(field: FieldInfo) -> bool:
    shown = str(field.annotation)
    return any(f".{table.__name__}" in shown for table in _TABLES.values())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.default
    if value is None or value is PydanticUndefined or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
