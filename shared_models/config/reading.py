"""TOML in, a config out, and back."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from shared_models.config.data import Data
from shared_models.config.parts import orphans
from shared_models.config.problems import tell
from shared_models.config.run import Config
from shared_models.config.stages import ExportStage, stage_name
from shared_models.config.tables import Table
from shared_models.errors import ConfigError, did_you_mean

_T = TypeVar("_T", bound=Table)

# What Flower's bundle runs when nobody gives it a config: the smallest thing that is a real run.
BUILTIN = """
name = "digits"
task = "digits-cnn"

[data]
partition = "iid"
clients = 20

[[stages]]
name = "train"
kind = "train"
rounds = 3
clients_per_round = 10
local_learning_rate = 0.1
"""


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a TOML file; its stem is the run's name if it has none. Raises `ConfigError`."""
    if path.is_dir():
        path = path / "config.toml"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "run"
    return parse_config(text, source=str(path), name=name[:80], overrides=overrides)


def parse_config(
    text: str, source: str, name: str = "run", overrides: Sequence[str] = ()
) -> Config:
    """Parses TOML text; `overrides` are `key.path=value`, a stage is addressed by its name."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    given = [override.partition("=")[0].strip() for override in overrides]
    for override in overrides:
        _apply(values, override, given)
    _make_paths_absolute(values)
    if "name" not in values:
        values["name"] = name
    return _checked(Config, values, source)


def to_toml(config: Config) -> str:
    """Returns the resolved config as TOML: defaults filled in, reading it gives an equal config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _apply(values: dict[str, Any], override: str, given: Sequence[str]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"-s {override}: expected key=value, e.g. -s stages.train.rounds=3")
    *path, last = [part.strip() for part in key.split(".")]
    table: Any = values
    for part in path:
        table = _descend(table, part, override)
    if not isinstance(table, dict):
        raise ConfigError(f"-s {override}: {'.'.join(path)} is not a table")
    before, table[last] = table.get(last), _scalar(text.strip())
    if path[:1] == ["stages"]:
        for orphan in orphans(last, before, table[last]):
            if ".".join([*path, orphan]) not in given:
                table.pop(orphan, None)


def _descend(table: Any, part: str, override: str) -> Any:
    if isinstance(table, list):
        named = {stage_name(stage): stage for stage in table if isinstance(stage, dict)}
        if part not in named:
            raise ConfigError(f"-s {override}: no stage {part!r}; {did_you_mean(part, named)}")
        return named[part]
    if not isinstance(table, dict):
        raise ConfigError(f"-s {override}: {part!r} is inside a value, not a table")
    return table.setdefault(part, {})


def _scalar(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string, so nobody has to quote quotes in a shell


def _make_paths_absolute(values: dict[str, Any]) -> None:
    """The run folder's config must mean the same from every working directory."""
    if isinstance(values.get("init"), str):
        values["init"] = str(Path(values["init"]).absolute())
    for table, key in (("data", "root"), ("data", "name"), ("evaluate", "data")):
        own = values.get(table)
        given = own.get(key) if isinstance(own, dict) else None
        if isinstance(own, dict) and isinstance(given, str) and _is_path(key, given):
            own[key] = str(Path(given).absolute()) + "/" * given.endswith("/")


def _is_path(key: str, given: str) -> bool:
    return key == "root" or given.endswith((".npz", "/"))


def parse_data(values: dict[str, Any]) -> Data:
    """Returns a data table from options; raises `ConfigError` that names the option."""
    return _checked(Data, values, "options")


def parse_export(base: ExportStage, changes: dict[str, Any]) -> ExportStage:
    """Returns an export stage with some keys changed; raises `ConfigError` that names the key."""
    return _checked(ExportStage, {**base.model_dump(), **changes}, "options")


def _checked(model: type[_T], values: dict[str, Any], source: str) -> _T:
    try:
        return model.model_validate_json(_json(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {tell(error.errors(), values)}") from None


def _json(values: dict[str, Any]) -> str:
    # JSON mode lets strict types accept what TOML can say (a list where a tuple is meant).
    return json.dumps(values, default=str)
