"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

Opener: TypeAlias = Callable[[str, int], int]


def write_atomic(path: Path, content: bytes) -> None:
    """Writes `content` to `path`: a crash leaves the old file or the new one, never a torn one.

    Raises OSError (full disk, no permission) with the old file untouched and nothing left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)


def replace_file(path: Path, content: bytes, opener: Opener | None = None) -> None:
    """Does what `write_atomic` does, in a folder that is there; `opener` is that of `open`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=opener) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a failed write does not say where
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def is_torn(path: Path, target: Path) -> bool:
    """Whether `path` is what `write_atomic(target, ...)` leaves when its process is killed."""
    return bool(re.fullmatch(rf"\.{re.escape(target.name)}\.\d+\.tmp", path.name))


def remove_torn(folder: Path) -> None:
    """Removes what `write_atomic` left in a folder when its process was killed."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a lock on an existing file for a while; yields whether it was free.

    The system lets go of it when the process ends, however it ends.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a power cut; not every platform lets a folder be opened.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
