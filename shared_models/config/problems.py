"""What is wrong with a config, in one line that names the key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared_models.config.data import Data, Evaluate
from shared_models.config.faults import Faults
from shared_models.config.plan import Plan
from shared_models.config.run import Config
from shared_models.config.stages import KINDS, stage_name
from shared_models.config.tables import Table
from shared_models.errors import did_you_mean

_SHOWN = 3
_BRANCH = re.compile(r"literal\[")

# What TOML's users call it, where pydantic says it in the words of Python.
_IN_OUR_WORDS = {
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-'",
    "string_too_short": "something",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "tuple_type": 'a list, like ["onnx"]',
    "too_short": "a list with something in it",
}


def tell(problems: list[Any], values: dict[str, Any]) -> str:
    """Returns the first problem in words; an unknown key is told before a missing one."""
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    # What is missing may well be what was misspelt.
    others = [p for p in problems if p not in unknown and not (unknown and p["type"] == "missing")]
    told = [_explain(place, alike, values) for place, alike in _by_place(unknown + others)]
    more = f" (and {len(told) - _SHOWN} more)" if len(told) > _SHOWN else ""
    return "; ".join(told[:_SHOWN]) + more


def _by_place(problems: Iterable[Any]) -> list[tuple[tuple[Any, ...], list[Any]]]:
    """Groups what is said of one key: pydantic says something for each branch of a union."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for problem in problems:
        place = list(problem["loc"])
        if len(place) > 2 and place[0] == "stages":
            del place[2]  # pydantic puts the kind of the stage there
        if _BRANCH.search(str(place[-1:])):
            del place[-1]
        found.setdefault(tuple(place), []).append(problem)
    return list(found.items())


def _explain(location: Sequence[Any], problems: Sequence[Any], values: Mapping[str, Any]) -> str:
    problem = problems[0]
    key = _key(location, values)
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return (
            f"unknown key {key!r}; {did_you_mean(str(location[-1]), _valid_keys(location, values))}"
        )
    if kind == "missing":
        return f"key {key!r} is missing"
    if kind == "value_error":
        # Our own validators say `: message` of their field, or `field: message` of their table.
        told = str(problem["ctx"]["error"])
        return told if not key else f"{key}{'' if told.startswith(':') else '.'}{told}"
    if kind.startswith("union_tag"):
        kinds = ", ".join(KINDS)
        return f"key {key + '.kind'!r} must be one of: {kinds}"
    return f"key {key!r} must be {_wanted(kind, problems, given)}"


def _wanted(kind: str, problems: Sequence[Any], given: object) -> str:
    if kind == "tuple_type" and isinstance(given, str):
        return f"a list, like {json.dumps([given])}"
    if kind == "literal_error":
        return _choice(problems, given)
    told = problems[0]["msg"].removeprefix("Input should be ")
    return f"{_IN_OUR_WORDS.get(kind, told)}, got {given!r}"


def _choice(problems: Sequence[Any], given: object) -> str:
    """Returns what a key may be, what it is, and the word that may have been meant."""
    told = " or ".join(str(p["ctx"]["expected"]) for p in problems if "expected" in p["ctx"])
    *first, last = re.findall(r"'[^']*'", told) or [told]
    valid = f"{', '.join(first)} or {last}" if first else last
    near = difflib.get_close_matches(f"'{given}'", [*first, last], n=1, cutoff=0.6)
    return f"{valid}, got {given!r}" + (f"; did you mean {near[0]}?" if near else "")


def _key(location: Iterable[Any], values: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for part in location:
        if isinstance(part, int) and parts == ["stages"]:
            stage = values["stages"][part]
            name = stage_name(stage) if isinstance(stage, Mapping) else None
            parts.append(str(name or part))
        else:
            parts.append(str(part))
    return ".".join(parts)


def _valid_keys(location: Sequence[Any], values: Mapping[str, Any]) -> Iterable[str]:
    if len(location) == 1:
        return Config.model_fields
    if location[0] == "stages":
        kind = values["stages"][location[1]]["kind"]
        return KINDS[kind].model_fields
    tables: dict[str, type[Table]] = {
        "data": Data,
        "evaluate": Evaluate,
        "plan": Plan,
        "faults": Faults,
    }
    return tables[str(location[0])].model_fields
