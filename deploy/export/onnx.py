"""ONNX files: fp32 by torch's exporter, int8 by ONNX Runtime's quantizer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

INPUT, OUTPUT = "input", "logits"


def export_fp32(model: nn.Module, sample: NDArray[Any], path: Path) -> None:
    """Writes the model as ONNX with a free batch axis; `sample` is a batch of two or more."""
    torch.onnx.export(
        model,
        (torch.from_numpy(sample),),
        str(path),
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )


def quantize_full(fp32: Path, path: Path, calibration: NDArray[Any]) -> None:
    """Writes a QDQ file: int8 weights per channel, int8 activations in the ranges of `calibration`.

    The ranges are min/max: the moving average that is the default elsewhere clips logits.
    """

    def quantize(prepared: str) -> None:
        quantize_static(
            prepared,
            str(path),
            _Examples(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )

    _prepared(fp32, quantize)


def quantize_weights(fp32: Path, path: Path) -> None:
    """Writes int8 weights and float activations: for recurrent models (ONNX Runtime only)."""
    _prepared(
        fp32,
        lambda prepared: quantize_dynamic(prepared, str(path), weight_type=QuantType.QInt8),
    )


def _prepared(fp32: Path, quantize: Callable[[str], None]) -> None:
    """Calls `quantize` with a copy of the file whose shapes are inferred and constants folded."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(str(fp32), prepared)
        quantize(prepared)


class _Examples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Hands calibration examples to the quantizer one by one."""

    def __init__(self, examples: NDArray[Any]) -> None:
        self._next = ({INPUT: examples[place : place + 1]} for place in range(len(examples)))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Returns the next example, None at the end."""
        return next(self._next, None)
