"""TFLite in float32: recurrent models by a writer of ours, all others by the converter."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.export.formats.layers import FLOAT32, Stores
from deploy.export.formats.looped import write_looped
from deploy.export.formats.recurrent import UnknownStructureError, is_recurrent, recognise
from deploy.export.formats.source import Made, Source
from deploy.export.formats.tflite_slim import slim


def write(source: Source, path: Path) -> Made:
    """Writes the weights as they are."""
    reason = write_if_recurrent(source, FLOAT32, path)
    if reason is not None:
        from deploy.export.formats.converted import convert

        shutil.copyfile(convert(source), path)
        slim(path, named=True)  # people quantize such files with other tools
    return Made("none", reason or "")


def write_if_recurrent(source: Source, stores: Stores, path: Path) -> str | None:
    """Writes a recurrent model with loops and returns None, or returns why not.

    There is nothing to tell of a model that is not recurrent.
    """
    if not is_recurrent(source.model):
        return ""
    try:
        model = recognise(source.model)
    except UnknownStructureError as error:
        return f"unrolled over time, which makes it large: no loop for it: {error}"
    path.write_bytes(write_looped(model, source.shape, stores))
    return None
