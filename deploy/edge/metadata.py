"""What a file says of itself: task, labels, input, origin, parity. No runtime is needed to read it.

It is one JSON text under the name `wildflower`: in TFLite among the model's metadata buffers, in
ONNX among its metadata properties.
"""

from __future__ import annotations

import itertools
import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from shared_models.errors import InputError

KEY = "wildflower"
_TFLITE_BUFFERS, _TFLITE_METADATA = 4, 6  # places in the table `Model` of schema.fbs
_ONNX_PROPERTIES = 14  # number of the field in `ModelProto` of onnx.proto
_MOST_ENTRIES, _MOST_TEXT, _VARINT_BYTES = 100_000, 1 << 24, 10
_WITH_LENGTH, _FIXED = 2, {1: 8, 5: 4}  # kinds of fields, and the bytes of those of one size

Content: TypeAlias = bytes | mmap.mmap


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns what is inside an `.onnx` or `.tflite` file; `InputError` when there is nothing."""
    readers = {".onnx": _in_onnx, ".tflite": _in_tflite}
    if path.suffix not in readers:
        raise InputError(f"{path}: expected a file that ends in .onnx or .tflite")
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            text = readers[path.suffix](content)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: there is no such file") from None
    except (struct.error, IndexError, ValueError, StopIteration):
        raise InputError(f"{path}: damaged: its metadata cannot be found") from None
    if text is None:
        raise InputError(f"{path}: has no metadata; it was not exported by Wildflower")
    try:
        found: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: damaged: its metadata is no JSON") from None
    return found


def _in_tflite(content: Content) -> bytes | None:
    """Walks the flatbuffer by hand: neither its library nor the schema is on a device."""
    model = _follow(content, 0)
    for entry in _tables(content, _field(content, model, _TFLITE_METADATA)):
        if _vector(content, _field(content, entry, 0), len(KEY)) == KEY.encode():
            (number,) = struct.unpack_from("<I", content, _field(content, entry, 1))
            buffers = _tables(content, _field(content, model, _TFLITE_BUFFERS))
            buffer = next(itertools.islice(buffers, number, None))
            return _vector(content, _field(content, buffer, 0), _MOST_TEXT)
    return None


def _field(content: Content, table: int, number: int) -> int:
    """Returns where a field of a table lies, 0 if it is left out."""
    (back,) = struct.unpack_from("<i", content, table)
    (size,) = struct.unpack_from("<H", content, table - back)
    place = 4 + 2 * number
    if place >= size:
        return 0
    (offset,) = struct.unpack_from("<H", content, table - back + place)
    return table + offset if offset else 0


def _follow(content: Content, place: int) -> int:
    (offset,) = struct.unpack_from("<I", content, place)
    return place + int(offset)


def _tables(content: Content, place: int) -> Iterator[int]:
    if not place:
        return
    vector = _follow(content, place)
    (count,) = struct.unpack_from("<I", content, vector)
    if count > _MOST_ENTRIES:
        raise ValueError("more entries than there are in any file")
    for index in range(count):
        yield _follow(content, vector + 4 + 4 * index)


def _vector(content: Content, place: int, longest: int) -> bytes | None:
    """Returns the bytes of a vector, None if it is longer: entries may share a huge one."""
    if not place:
        return b""
    vector = _follow(content, place)
    (count,) = struct.unpack_from("<I", content, vector)
    return content[vector + 4 : vector + 4 + count] if count <= longest else None


def _in_onnx(content: Content) -> bytes | None:
    """Walks the fields of the protobuf by hand."""
    for number, start, end in _fields(content, 0, len(content)):
        if number == _ONNX_PROPERTIES and end - start <= _MOST_TEXT:
            entry = content[start:end]
            told = {key: entry[a:b] for key, a, b in _fields(entry, 0, len(entry))}
            if told.get(1) == KEY.encode():
                return told.get(2)
    return None


def _fields(message: Content, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the number, start and end of each field that has a length, passing over others."""
    for _ in range(_MOST_ENTRIES):
        if place >= end:
            return
        tag, place = _varint(message, place)
        size, start = _extent(message, place, tag & 7)
        if tag & 7 == _WITH_LENGTH:
            yield tag >> 3, start, start + size
        place = start + size
    raise ValueError("more fields than there are in any file")


def _extent(message: Content, place: int, kind: int) -> tuple[int, int]:
    """Returns how long the content of a field is, and where it begins."""
    if kind == _WITH_LENGTH:
        return _varint(message, place)
    if kind == 0:
        return 0, _varint(message, place)[1]
    if kind in _FIXED:
        return _FIXED[kind], place
    raise ValueError("no such kind of field")


def _varint(message: Content, place: int) -> tuple[int, int]:
    value = 0
    for count in range(_VARINT_BYTES):
        byte = message[place + count]
        value |= (byte & 0x7F) << 7 * count
        if not byte & 0x80:
            return value, place + count + 1
    raise ValueError("a number without an end")
