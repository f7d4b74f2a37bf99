"""What a file says of itself: task, labels, input, origin, parity. No runtime is needed to read it.

It is one JSON text under the name `wildflower`: in TFLite among the model's metadata buffers, in
ONNX among its metadata properties.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared_models.errors import InputError

KEY = "wildflower"
_TFLITE_BUFFERS, _TFLITE_METADATA = 4, 6  # places in the table `Model` of schema.fbs
_ONNX_PROPERTIES = 14  # number of the field in `ModelProto` of onnx.proto


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns what is inside an `.onnx` or `.tflite` file; `InputError` when there is nothing."""
    readers = {".onnx": _in_onnx, ".tflite": _in_tflite}
    if path.suffix not in readers:
        raise InputError(f"{path}: expected a file that ends in .onnx or .tflite")
    try:
        text = readers[path.suffix](path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (struct.error, IndexError, ValueError):
        raise InputError(f"{path}: damaged: its metadata cannot be found") from None
    if text is None:
        raise InputError(f"{path}: has no metadata; it was not exported by Wildflower")
    try:
        found: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: damaged: its metadata is no JSON") from None
    return found


def _in_tflite(content: bytes) -> bytes | None:
    """Walks the flatbuffer by hand: neither its library nor the schema is on a device."""
    model = _follow(content, 0)
    for entry in _tables(content, _field(content, model, _TFLITE_METADATA)):
        if _vector(content, _field(content, entry, 0)) == KEY.encode():
            (number,) = struct.unpack_from("<I", content, _field(content, entry, 1))
            buffer = list(_tables(content, _field(content, model, _TFLITE_BUFFERS)))[number]
            return _vector(content, _field(content, buffer, 0))
    return None


def _field(content: bytes, table: int, number: int) -> int:
    """Returns where a field of a table lies, 0 if it is left out."""
    (back,) = struct.unpack_from("<i", content, table)
    (size,) = struct.unpack_from("<H", content, table - back)
    place = 4 + 2 * number
    if place >= size:
        return 0
    (offset,) = struct.unpack_from("<H", content, table - back + place)
    return table + offset if offset else 0


def _follow(content: bytes, place: int) -> int:
    (offset,) = struct.unpack_from("<I", content, place)
    return place + int(offset)


def _tables(content: bytes, place: int) -> Iterator[int]:
    if not place:
        return
    vector = _follow(content, place)
    (count,) = struct.unpack_from("<I", content, vector)
    for index in range(count):
        yield _follow(content, vector + 4 + 4 * index)


def _vector(content: bytes, place: int) -> bytes:
    if not place:
        return b""
    vector = _follow(content, place)
    (count,) = struct.unpack_from("<I", content, vector)
    return content[vector + 4 : vector + 4 + count]


def _in_onnx(content: bytes) -> bytes | None:
    """Walks the fields of the protobuf by hand."""
    for number, value in _fields(content):
        if number == _ONNX_PROPERTIES:
            entry = dict(_fields(value))
            if entry.get(1) == KEY.encode():
                return entry.get(2)
    return None


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the number and content of each field that has a length; the others are passed over."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            _, place = _varint(message, place)
        elif kind == 2:
            size, place = _varint(message, place)
            yield tag >> 3, message[place : place + size]
            place += size
        elif kind in {1, 5}:
            place += 8 if kind == 1 else 4
        else:
            raise ValueError("no such kind of field")


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
