"""TFLite in int8 throughout: what goes in and comes out is int8, too."""

from __future__ import annotations

from pathlib import Path

from deploy.export.formats.converted import full_int8, quantize
from deploy.export.formats.source import Made, Source, calibration_note


def write(source: Source, path: Path) -> Made:
    """Writes int8 weights and activations, in the ranges that the calibration examples show."""
    quantize(source, full_int8(), path)
    return Made("int8 weights and activations", calibration_note(source))
