"""ONNX in int8: every operator between a Quantize and a Dequantize (QDQ)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from deploy.export.formats.matching import matched
from deploy.export.formats.onnx_fp32 import INPUT, convert
from deploy.export.formats.onnx_slim import slim
from deploy.export.formats.onnx_values import open_onnx
from deploy.export.formats.source import Made, Source, calibration_note
from shared_models.ranges import Ranges


def write(source: Source, path: Path) -> Made:
    """Writes int8 weights per channel, int8 activations in the ranges of the calibration examples.

    The ranges are min/max: the moving average that is the default elsewhere clips logits.
    """
    told = None if source.ranges is None else _write_ranges(source, source.ranges)
    quantize_static(
        str(prepared(source)),
        str(path),
        _Examples(source.calibration),
        calibration_cache_path=told,  # None: the examples set the ranges
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    slim(path)
    return Made("int8 weights and activations", calibration_note(source))


def prepared(source: Source) -> Path:
    """Returns the fp32 file with shapes inferred and constants folded, as quantizers need it."""

    def prepare(path: Path) -> None:
        # The symbolic inference writes into the working directory where it fails, and what it
        # finds the other one finds, too.
        quant_pre_process(str(convert(source)), str(path), skip_symbolic_shape=True)

    return source.once("prepared.onnx", prepare)


def _write_ranges(source: Source, ranges: Ranges) -> Path:
    """Writes the ranges that clients told as the quantizer writes its own; returns where."""
    opened = open_onnx(prepared(source), source.calibration)
    wanted = [name for name, own in opened.tensors.items() if own.dtype == np.float32]
    found = matched(source.model, source.calibration, opened, ranges, wanted)
    data = {
        name: (np.array(own.low, np.float32), np.array(own.high, np.float32))
        for name, own in found.items()
    }
    told = source.workshop / "ranges-onnx.json"
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), told)
    return told


class _Examples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Hands calibration examples to the quantizer one by one."""

    def __init__(self, examples: NDArray[Any]) -> None:
        self._next = ({INPUT: examples[place : place + 1]} for place in range(len(examples)))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Returns the next example, None at the end."""
        return next(self._next, None)
