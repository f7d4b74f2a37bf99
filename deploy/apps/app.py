"""What an app says of itself: its pyproject.toml, read without importing anything of it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_models.errors import ConfigError, did_you_mean

Scalar = bool | float | int | str
RunConfig = dict[str, Scalar]


@dataclass(frozen=True)
class FlowerApp:
    """An app: where it is, its two components as `module:attribute`, its run config."""

    folder: Path
    serverapp: str
    clientapp: str
    run_config: RunConfig


def read_app(folder: Path, overrides: Sequence[str] = ()) -> FlowerApp:
    """Reads the app in a folder; `overrides` are `key=value` of its run config.

    Raises:
        ConfigError: there is no app, or an override does not fit its run config.
    """
    path = folder / "pyproject.toml"
    project = _read(path)
    told = _table(project, ("tool", "flwr", "app"), path)
    components = _table(told, ("components",), path, above="tool.flwr.app.")
    serverapp, clientapp = (_component(components, key, path) for key in ("serverapp", "clientapp"))
    defaults = _flatten(told.get("config", {}), path)
    return FlowerApp(
        folder.absolute(), serverapp, clientapp, _override(defaults, overrides, folder)
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: not found; --app takes the folder of a Flower app") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _table(
    values: Mapping[str, Any], keys: Sequence[str], path: Path, above: str = ""
) -> Mapping[str, Any]:
    for key in keys:
        values = values.get(key, {})
        if not isinstance(values, dict) or not values:
            section = above + ".".join(keys)
            raise ConfigError(f"{path}: has no [{section}]; a Flower app has one")
    return values


def _component(components: Mapping[str, Any], key: str, path: Path) -> str:
    section = f"{path}: [tool.flwr.app.components]"
    if key not in components:
        raise ConfigError(f"{section} has no {key}; it names one as module:attribute")
    named = components[key]
    module, separator, attribute = str(named).partition(":")
    if not isinstance(named, str) or not (module and separator and attribute):
        raise ConfigError(f"{section} {key} = {named!r}: expected module:attribute")
    return named


def _flatten(config: Any, path: Path, above: str = "") -> RunConfig:
    """Returns nested tables as one, keys joined by dots, as Flower does."""
    flat: RunConfig = {}
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            flat.update(_flatten(value, path, f"{above}{key}."))
        elif isinstance(value, Scalar):
            flat[above + key] = value
        else:
            raise ConfigError(
                f"{path}: [tool.flwr.app.config] {above}{key}: "
                f"expected a bool, a number or a string, got {type(value).__name__}"
            )
    return flat


def _override(defaults: RunConfig, overrides: Sequence[str], folder: Path) -> RunConfig:
    config = dict(defaults)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"-s {override}: expected key=value, e.g. -s num-server-rounds=3")
        if key not in defaults:
            known = did_you_mean(key, defaults) if defaults else "it has none"
            raise ConfigError(f"-s {override}: {key!r} is no run config of {folder}; {known}")
        config[key] = _value(text, defaults[key], override)
    return config


def _value(text: str, default: Scalar, override: str) -> Any:
    """Returns what is given, as TOML or as a bare string; its kind is that of the default."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if isinstance(default, str) and not isinstance(value, str):
        return text  # -s name=7 means the string where the default is one
    if _kind(value) != _kind(default):
        raise ConfigError(
            f"-s {override}: expected a {_kind(default)} as in the default {default!r}"
        )
    return value


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else type(value).__name__
