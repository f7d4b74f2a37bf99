"""TFLite with weights in float16, which the runtime turns into float32 as it loads them."""

from __future__ import annotations

from pathlib import Path

from deploy.export.formats.layers import FLOAT16
from deploy.export.formats.source import Made, Source
from deploy.export.formats.tflite_fp32 import write_if_recurrent


def write(source: Source, path: Path) -> Made:
    """Writes float16 weights; everything is computed in float32."""
    reason = write_if_recurrent(source, FLOAT16, path)
    if reason is not None:
        _quantize(source, path)
    return Made("fp16 weights", reason or "")


def _quantize(source: Source, path: Path) -> None:
    from deploy.export.formats.converted import EVERYWHERE, Algorithm, Operator, Recipe, quantize

    recipe = Recipe()
    for operator in (
        Operator.CONV_2D,
        Operator.DEPTHWISE_CONV_2D,
        Operator.CONV_2D_TRANSPOSE,
        Operator.FULLY_CONNECTED,
    ):
        recipe.add_weight_only_config(
            EVERYWHERE, operator, 16, algorithm_key=Algorithm.FLOAT_CASTING
        )
    quantize(source, recipe, path)
