"""One way to look into a tarball, a wheel, a Debian package or a folder of the same files."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shared_models.errors import DataError


@dataclass(frozen=True)
class Archive:
    """The names in an archive, and a function that returns the bytes of one (gunzipped)."""

    path: Path
    names: tuple[str, ...]
    raw: Callable[[str], bytes]

    def read(self, name: str) -> bytes:
        """Returns a member's bytes, found by its last part if need be, with or without .gz."""
        found = name if name in self.names else self._by_last_part(name)
        content = self.raw(found)
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content

    def _by_last_part(self, name: str) -> str:
        wanted = PurePosixPath(name).name.removesuffix(".gz")
        found = [n for n in self.names if PurePosixPath(n).name.removesuffix(".gz") == wanted]
        if len(found) == 1:
            return found[0]
        count = f"{len(found)} files are called" if found else "there is no"
        raise DataError(f"{self.path}: {count} {wanted} in it")


def open_archive(path: Path) -> Archive:
    """Opens a .tgz, .whl, .deb or a folder; raises what its library raises when it is damaged."""
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".whl":
        return _zip(path)
    return _tar(path, _deb_content(path) if path.suffix == ".deb" else path.read_bytes())


def _folder(path: Path) -> Archive:
    names = tuple(sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()))
    return Archive(path, names, lambda name: (path / name).read_bytes())


def _zip(path: Path) -> Archive:
    file = zipfile.ZipFile(path)
    return Archive(path, tuple(file.namelist()), file.read)


def _tar(path: Path, content: bytes) -> Archive:
    file = tarfile.open(fileobj=io.BytesIO(content))  # noqa: SIM115  # in memory, read later

    def raw(name: str) -> bytes:
        member = file.extractfile(name)
        if member is None:
            raise DataError(f"{path}: {name} is not a file")
        return member.read()

    return Archive(path, tuple(file.getnames()), raw)


def _deb_content(path: Path) -> bytes:
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    return subprocess.run(command, check=True, capture_output=True).stdout
