"""TFLite by the converter and the quantizer of others: models without a writer of ours.

Weights of fully connected layers are quantized per tensor: per channel gives wrong answers on
tflite-runtime 2.14, without an error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.utils import qsv_utils

from deploy.export.formats.matching import matched
from deploy.export.formats.source import Source
from deploy.export.formats.tflite_slim import slim
from deploy.export.formats.tflite_values import open_tflite
from shared_models.ranges import Ranges

EVERYWHERE = ".*"
Algorithm = AlgorithmName
Operator, Granularity = qtyping.TFLOperationName, qtyping.QuantGranularity
Recipe: TypeAlias = recipe_manager.RecipeManager


def convert(source: Source) -> Path:
    """Returns the model as fp32 TFLite with batch 1: some operators convert with no other."""
    return source.once("converted.tflite", lambda path: _convert(source, path))


def _convert(source: Source, path: Path) -> None:
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    import litert_torch  # takes seconds to import, so only when it is used

    litert_torch.convert(source.model, (torch.from_numpy(source.calibration[:1]),)).export(
        str(path)
    )


def quantize(source: Source, recipe: Recipe, path: Path) -> None:
    """Writes the converted model as a recipe says; activations that need ranges get them."""
    fp32 = convert(source)
    work = quantizer.Quantizer(str(fp32), recipe.get_quantization_recipe())
    ranges = _ranges(fp32, recipe, source) if work.need_calibration else None
    work.quantize(ranges).export_model(str(path), overwrite=True)
    slim(path)


def full_int8() -> Recipe:
    """Returns the recipe for int8 weights and activations, also those that go in and out."""
    recipe = Recipe()
    recipe.add_static_config(EVERYWHERE, Operator.ALL_SUPPORTED, 8, 8)
    recipe.add_static_config(
        EVERYWHERE, Operator.FULLY_CONNECTED, 8, 8, weight_granularity=Granularity.TENSORWISE
    )
    return recipe


def _ranges(fp32: Path, recipe: Recipe, source: Source) -> dict[str, Any]:
    """Returns each tensor's smallest and largest value over the calibration examples."""
    (signature, ends), *_ = Interpreter(str(fp32)).get_signature_list().items()
    name, x = ends["inputs"][0], source.calibration
    examples = [{name: x[place : place + 1]} for place in range(len(x))]
    # The calibrator's default, a moving average, clips: a logit was off by 11.
    calibrator = Calibrator(str(fp32), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    calibrator.calibrate({signature: examples}, recipe)
    ranges: dict[str, Any] = calibrator.get_model_qsvs()
    return ranges if source.ranges is None else _as_told(fp32, ranges, source, source.ranges)


def _as_told(
    fp32: Path, measured: dict[str, Any], source: Source, ranges: Ranges
) -> dict[str, Any]:
    """Returns what was measured on probes, with the ranges that clients told in its place."""
    opened = open_tflite(fp32, source.calibration)
    wanted = [name for name in measured if name in opened.tensors]  # the others are weights
    found = matched(source.model, source.calibration, opened, ranges, wanted)
    told = {
        name: {
            "min": np.full_like(measured[name]["min"], own.low),
            "max": np.full_like(measured[name]["max"], own.high),
        }
        for name, own in found.items()
    }
    return {**measured, **told}
