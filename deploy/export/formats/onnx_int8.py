"""ONNX in int8: every operator between a Quantize and a Dequantize (QDQ)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from deploy.export.formats.onnx_fp32 import INPUT, convert
from deploy.export.formats.source import Made, Source


def write(source: Source, path: Path) -> Made:
    """Writes int8 weights per channel, int8 activations in the ranges of the calibration examples.

    The ranges are min/max: the moving average that is the default elsewhere clips logits.
    """
    quantize_static(
        str(prepared(source)),
        str(path),
        _Examples(source.calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return Made("int8 weights and activations")


def prepared(source: Source) -> Path:
    """Returns the fp32 file with shapes inferred and constants folded, as quantizers need it."""
    return source.once(
        "prepared.onnx", lambda path: quant_pre_process(str(convert(source)), str(path))
    )


class _Examples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Hands calibration examples to the quantizer one by one."""

    def __init__(self, examples: NDArray[Any]) -> None:
        self._next = ({INPUT: examples[place : place + 1]} for place in range(len(examples)))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Returns the next example, None at the end."""
        return next(self._next, None)
