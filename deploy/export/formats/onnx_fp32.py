"""ONNX in float32: recurrent models by a writer of ours, all others by torch's exporter."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from deploy.export.formats.onnx_recurrent import recurrent_onnx
from deploy.export.formats.onnx_slim import slim
from deploy.export.formats.recurrent import UnknownStructureError, is_recurrent, recognise
from deploy.export.formats.source import Made, Source

INPUT, OUTPUT = "input", "output"


def write(source: Source, path: Path) -> Made:
    """Writes the weights as they are; the batch axis is free."""
    shutil.copyfile(convert(source), path)
    slim(path)
    return Made("none")


def convert(source: Source) -> Path:
    """Returns the model as fp32 ONNX."""
    return source.once("converted.onnx", lambda path: _convert(source, path))


def _convert(source: Source, path: Path) -> None:
    if is_recurrent(source.model):
        with contextlib.suppress(UnknownStructureError):
            model = recognise(source.model)
            onnx.save(recurrent_onnx(model, source.shape, (INPUT, OUTPUT)), str(path))
            return
    # A batch of one would be taken for a constant.
    sample = torch.from_numpy(source.calibration[:1].repeat(2, axis=0))
    if any(isinstance(module, nn.RNN | nn.GRU) for module in source.model.modules()):
        _convert_as_before(source.model, sample, path)
        return
    torch.onnx.export(
        source.model,
        (sample,),
        str(path),
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )


def _convert_as_before(model: nn.Module, sample: Tensor, path: Path) -> None:
    """Converts by the older exporter: one operator a layer, which the newer one unrolls."""
    torch.onnx.export(
        model,
        (sample,),
        str(path),
        dynamo=False,
        dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        input_names=[INPUT],
        output_names=[OUTPUT],
    )
