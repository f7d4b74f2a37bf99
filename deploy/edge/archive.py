"""A zip of a few plain files: the same bytes each time, and nothing but that is read back."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from shared_models.errors import ExportError, InputError, one_line
from shared_models.files import write_atomic

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can tell
_MOST_FILES, _MOST_BYTES, _DIRECTORY_BYTES = 20, 1 << 30, 1 << 14
_ZIP64_SIZE = 20  # what points to a larger one lies before it
_END = struct.Struct("<4s4H2LH")  # the end of the central directory, without a comment


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes the files uncompressed: neither the clock nor a version of zlib changes the bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, one in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is written
            archive.writestr(entry, one)
    write_atomic(path, content.getvalue())


def read_archive(path: Path) -> dict[str, bytes]:
    """Returns the files of an archive that `write_archive` wrote.

    Raises `ExportError` for any other: what is compressed, huge, or has paths in its names cannot
    come from there.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if path.stat().st_size > _MOST_BYTES:
        raise ExportError(f"{path}: is no bundle: it has more than {_MOST_BYTES >> 20} MB")
    try:
        _check_end(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(entries, path.stat().st_size)
            return {entry.filename: archive.read(entry) for entry in entries}
    except (
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        EOFError,
        OSError,
        struct.error,
    ) as error:
        raise ExportError(f"{path}: is no bundle, or damaged: {one_line(str(error))}") from None


def _check_end(path: Path) -> None:
    """Raises `ValueError` unless the list of files is short: it is read before any check."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP64_SIZE - _END.size))
        last = file.read()
    magic, _, _, _, count, size, _, comment = _END.unpack(last[-_END.size :])
    if magic != b"PK\x05\x06" or comment or last.startswith(b"PK\x06\x07"):
        raise ValueError("its end is not as it should be")
    if count > _MOST_FILES or size > _DIRECTORY_BYTES:
        raise ValueError(f"it has {count} files")


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Raises `ValueError` for what `write_archive` never writes."""
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names) or len(names) > _MOST_FILES:
        raise ValueError("a file is there twice, or there are too many")
    for entry in entries:
        if not _NAME.fullmatch(entry.filename):
            raise ValueError(f"a name has a path: {entry.filename!r}")
        if entry.flag_bits & 1:
            raise ValueError(f"{entry.filename} is encrypted")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{entry.filename} is compressed")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("it claims to hold more than it does")
