"""The bundle that Flower carries to a fleet: our own code, from wherever it is installed."""

from __future__ import annotations

import tomllib
import warnings
from pathlib import Path

import tomli_w

from shared_models.errors import InputError

_PACKAGES = ("server", "clients", "shared_models")


def build_bundle(root: Path = Path(__file__).parents[2], own: Path | None = None) -> bytes:
    """Returns Flower's bundle (a FAB) of the packages in `root`; equal code gives equal bytes.

    `own` is a user's file with the task of the run: it lies beside the packages.
    """
    from flwr.cli.build import build_fab_from_files

    said = ("pyproject.toml", "README.md")
    if missing := [name for name in said if not (root / name).is_file()]:
        raise InputError(
            f"{root}: no {missing[0]} beside the packages; a run can be submitted from a checkout "
            "or an editable install (`pip install -e`)"
        )
    files: dict[str, bytes | Path] = {name: root / name for name in said}
    for package in _PACKAGES:
        found = sorted((root / package).rglob("*.py"))
        files |= {path.relative_to(root).as_posix(): path for path in found}
    if own is not None:
        files |= {own.name: own, "pyproject.toml": _including(root / "pyproject.toml", own.name)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a library that Flower uses
        bundle, _ = build_fab_from_files(files)
    return bytes(bundle)


def _including(project: Path, file: str) -> bytes:
    """Returns our pyproject.toml, changed so that Flower lets one more file into the bundle."""
    told = tomllib.loads(project.read_text())
    told["tool"]["flwr"]["app"]["fab-include"].append(f"/{file}")
    return tomli_w.dumps(told).encode()
