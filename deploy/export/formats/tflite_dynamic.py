"""TFLite with int8 weights.

The runtime quantizes activations too, by the range of each input; of recurrent layers the state, at
each step.
"""

from __future__ import annotations

from pathlib import Path

from deploy.export.formats.layers import INT8
from deploy.export.formats.source import Made, Source
from deploy.export.formats.tflite_fp32 import write_if_recurrent


def write(source: Source, path: Path) -> Made:
    """Writes int8 weights; floats go in and out, and nothing is calibrated."""
    reason = write_if_recurrent(source, INT8, path)
    if reason is not None:
        write_converted(source, path)
    return Made("int8 weights", reason or "")


def write_converted(source: Source, path: Path) -> None:
    """Writes what the converter makes of the model, a recurrent one unrolled over time."""
    from deploy.export.formats.converted import EVERYWHERE, Granularity, Operator, Recipe, quantize

    recipe = Recipe()
    recipe.add_dynamic_config(EVERYWHERE, Operator.CONV_2D, 8)
    recipe.add_dynamic_config(EVERYWHERE, Operator.DEPTHWISE_CONV_2D, 8)
    recipe.add_dynamic_config(
        EVERYWHERE, Operator.FULLY_CONNECTED, 8, granularity=Granularity.TENSORWISE
    )
    # tflite-runtime 2.14 refuses dynamic ones.
    recipe.add_weight_only_config(EVERYWHERE, Operator.CONV_2D_TRANSPOSE, 8)
    quantize(source, recipe, path)
