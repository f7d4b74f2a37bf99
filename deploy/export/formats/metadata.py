"""Puts a text into a file, where `deploy.edge.metadata` finds it.

The parity that it tells is known only after the file was run. So room is reserved first, and the
text is filled in later: the file that was run and the file that ships differ in these bytes only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploy.edge.metadata import KEY
from shared_models.errors import ExportError

_FILLER = "?"


def reserve(path: Path, size: int) -> None:
    """Puts a text of `size` bytes into a file that has none yet."""
    text = (_FILLER * size).encode()
    {".onnx": _into_onnx, ".tflite": _into_tflite}[path.suffix](path, text)


def fill_in(path: Path, text: str, size: int) -> None:
    """Puts the text where `size` bytes are reserved; spaces follow it."""
    content, reserved = path.read_bytes(), (_FILLER * size).encode()
    final = text.encode().ljust(size)
    if len(final) > size or content.count(reserved) != 1:
        raise ExportError(f"{path.name}: there is no room for metadata of {len(final)} bytes")
    path.write_bytes(content.replace(reserved, final))


def _into_onnx(path: Path, text: bytes) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {KEY: text.decode()})
    onnx.save(model, str(path))


def _into_tflite(path: Path, text: bytes) -> None:
    from ai_edge_litert import schema_py_generated as schema

    from deploy.export.formats.graph import pack, unpack

    model = unpack(path.read_bytes())
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(text, np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = KEY.encode(), len(model.buffers) - 1
    model.metadata = [*(model.metadata or ()), entry]
    path.write_bytes(pack(model))
