"""Every format by its name, and which of them suit a model.

A format is a family and what is quantized: `tflite-int8` is `--format tflite --quantize int8`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from deploy.export.formats.recurrent import UnknownStructureError, is_recurrent, recognise
from deploy.export.formats.source import Made, Source
from shared_models.errors import InputError


@dataclass(frozen=True)
class Format:
    """A kind of file: its name in a folder, and the function that writes it.

    `objection(model)` says why it cannot be made of a model, or nothing.
    """

    file: str
    writer: str  # module:function; the module imports a converter, so only when it is used
    objection: Callable[[nn.Module], str]


def export(source: Source, name: str, path: Path) -> Made:
    """Writes a model as one file of a format; raises whatever the converter raises."""
    module, function = FORMATS[name].writer.split(":")
    write: Callable[[Source, Path], Made] = getattr(importlib.import_module(module), function)
    return write(source, path)


def choose(
    model: nn.Module, families: Sequence[str], quantize: Sequence[str], answer: str = "classes"
) -> tuple[str, ...]:
    """Returns the names of the formats that are asked for, each once; `answer` is the task's.

    Raises `InputError` that says why when one cannot be made of the model.
    """
    names = tuple(
        dict.fromkeys(
            name
            for family in families
            for asked in quantize
            for name in _meant(model, family, asked, answer)
        )
    )
    for name in names:
        if reason := objection(model, name):
            raise InputError(f"{name}: cannot be made of this model: {reason}")
    return names


def objection(model: nn.Module, name: str) -> str:
    """Returns why a format cannot be made of a model, nothing if it can."""
    return FORMATS[name].objection(model) if name in FORMATS else _NEVER[name]


def _meant(model: nn.Module, family: str, asked: str, answer: str) -> tuple[str, ...]:
    if asked != "auto":
        return (_name(family, asked),)
    # Measured, docs/export.md: full int8 is fastest where there are no states, but dense layers
    # whose answer is values lose much by it and gain nothing.
    is_better = is_recurrent(model) or (answer == "values" and not _has_convolutions(model))
    small = "dynamic" if is_better or family == "tflite-stream" else "int8"
    return _name(family, "none"), _name(family, small)


def _has_convolutions(model: nn.Module) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    return any(isinstance(layer, kinds) for layer in model.modules())


def _name(family: str, quantize: str) -> str:
    return f"{family}-{'fp32' if quantize == 'none' else quantize}"


def _anything(_: nn.Module) -> str:
    return ""


def _tflite_int8(model: nn.Module) -> str:
    if is_recurrent(model):
        return "the state of a recurrent layer stays float; dynamic has int8 weights"
    return ""


def _onnx_int8(model: nn.Module) -> str:
    if is_recurrent(model):
        return "QDQ leaves the weights of recurrent layers in fp32; dynamic makes them int8"
    return ""


def _stream(model: nn.Module) -> str:
    if not is_recurrent(model):
        return "it has no state that could be kept from one time step to the next"
    try:
        recognise(model)
    except UnknownStructureError as error:
        return f"only embedding, LSTM and dense layers in a row can: {error}"
    return ""


_HERE = "deploy.export.formats"
FORMATS = {
    "onnx-fp32": Format("model-fp32.onnx", f"{_HERE}.onnx_fp32:write", _anything),
    "onnx-dynamic": Format("model-dynamic.onnx", f"{_HERE}.onnx_dynamic:write", _anything),
    "onnx-int8": Format("model-int8.onnx", f"{_HERE}.onnx_int8:write", _onnx_int8),
    "tflite-fp32": Format("model-fp32.tflite", f"{_HERE}.tflite_fp32:write", _anything),
    "tflite-fp16": Format("model-fp16.tflite", f"{_HERE}.tflite_fp16:write", _anything),
    "tflite-dynamic": Format("model-dynamic.tflite", f"{_HERE}.tflite_dynamic:write", _anything),
    "tflite-int8": Format("model-int8.tflite", f"{_HERE}.tflite_int8:write", _tflite_int8),
    "tflite-int8-float": Format(
        "model-int8-float.tflite", f"{_HERE}.tflite_int8_float:write", _tflite_int8
    ),
    "tflite-stream-fp32": Format(
        "stream-fp32.tflite", f"{_HERE}.tflite_stream:write_fp32", _stream
    ),
    "tflite-stream-dynamic": Format(
        "stream-dynamic.tflite", f"{_HERE}.tflite_stream:write_dynamic", _stream
    ),
}
# Combinations of the options that make no file, whatever the model.
_NEVER = {
    "onnx-fp16": "ONNX Runtime computes no fp16 on a CPU; tflite can",
    "onnx-int8-float": "an ONNX file takes and gives floats anyway; say int8",
    "tflite-stream-fp16": "say none or dynamic: int8 weights are smaller still",
    "tflite-stream-int8": "the state of a recurrent layer stays float; dynamic has int8 weights",
    "tflite-stream-int8-float": "its state stays float; dynamic has int8 weights",
}
