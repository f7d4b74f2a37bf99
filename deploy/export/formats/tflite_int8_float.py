"""TFLite in int8 inside; floats go in and come out, the file converts them itself."""

from __future__ import annotations

from pathlib import Path

from deploy.export.formats.converted import EVERYWHERE, Algorithm, Operator, full_int8, quantize
from deploy.export.formats.source import Made, Source, calibration_note


def write(source: Source, path: Path) -> Made:
    """Writes int8 weights and activations between a float input and float logits."""
    recipe = full_int8()
    for end in (Operator.INPUT, Operator.OUTPUT):
        recipe.add_quantization_config(EVERYWHERE, end, algorithm_key=Algorithm.NO_QUANTIZE)
    quantize(source, recipe, path)
    return Made("int8 weights and activations, float in and out", calibration_note(source))
