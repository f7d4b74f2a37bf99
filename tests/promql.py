"""What a PromQL query asks for: metrics by name, and the labels it matches or groups by.

Not a parser: enough to see a name that nobody serves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FUNCTIONS = {
    "sum", "by", "on", "and", "or", "unless", "without", "rate", "increase", "time", "avg", "max",
    "min", "count", "label_values", "absent",
}  # fmt: skip
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|on|without)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\s*(?:\{([^}]*)\})?")
_MATCHED = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


@dataclass(frozen=True)
class Asked:
    """A metric in a query, with the labels that it has to have."""

    metric: str
    labels: frozenset[str]


def asked(query: str) -> Iterator[Asked]:
    """Yields the metrics of a query; labels of a grouping are asked of all of them."""
    bare = _STRING.sub('""', query)
    grouped = {label.strip() for found in _GROUPING.findall(bare) for label in found.split(",")}
    bare = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", bare))
    if found := re.fullmatch(r"label_values\((\w+), (\w+)\)", query):
        yield Asked(found[1], frozenset({found[2]}))
        return
    for name, matchers in _SELECTOR.findall(bare):
        if name not in _FUNCTIONS:
            yield Asked(name, frozenset(_MATCHED.findall(matchers)) | grouped)


def queries_of_dashboard(path: Path) -> list[str]:
    """Returns all queries of a dashboard of Grafana, those of its variables too."""
    board = json.loads(path.read_text())
    panels = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return panels + [v["definition"] for v in board["templating"]["list"] if v["type"] == "query"]


def rules_of(path: Path) -> list[Mapping[str, Any]]:
    """Returns the alert rules of a file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
