"""ONNX with int8 weights; ONNX Runtime quantizes activations by the range of each input."""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from deploy.export.formats.onnx_int8 import prepared
from deploy.export.formats.onnx_slim import slim
from deploy.export.formats.source import Made, Source

# Convolutions stay float: quantized so, they are slower than that.
_OPERATORS = ["MatMul", "Gemm", "LSTM", "Gather"]


def write(source: Source, path: Path) -> Made:
    """Writes int8 weights of dense, embedding and LSTM layers (ONNX Runtime only)."""
    quantize_dynamic(
        str(prepared(source)),
        str(path),
        op_types_to_quantize=_OPERATORS,
        weight_type=QuantType.QInt8,
    )
    slim(path)
    return Made("int8 weights")
