"""TFLite files: fp32 by litert-torch, int8 by the edge quantizer.

Weights of fully connected layers are quantized per tensor: per channel gives wrong answers on
tflite-runtime 2.14, without an error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.utils import qsv_utils
from numpy.typing import NDArray
from torch import nn

_EVERYWHERE = ".*"
_Operator, _Granularity = qtyping.TFLOperationName, qtyping.QuantGranularity
_Recipe = list[dict[str, Any]]


def export_fp32(model: nn.Module, sample: NDArray[Any], path: Path) -> None:
    """Writes the model as TFLite with batch 1: some operators convert with a fixed batch only."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    import litert_torch  # takes seconds to import, so only when it is used

    litert_torch.convert(model, (torch.from_numpy(sample[:1]),)).export(str(path))


def quantize_full(fp32: Path, path: Path, calibration: NDArray[Any]) -> None:
    """Writes int8 weights and activations, in the min/max ranges that `calibration` shows."""
    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(_EVERYWHERE, _Operator.ALL_SUPPORTED, 8, 8)
    recipe.add_static_config(
        _EVERYWHERE,
        _Operator.FULLY_CONNECTED,
        8,
        8,
        weight_granularity=_Granularity.TENSORWISE,
    )
    _quantize(fp32, path, recipe, _ranges(fp32, recipe, calibration))


def quantize_weights(fp32: Path, path: Path) -> None:
    """Writes int8 weights and float activations: for recurrent models."""
    recipe = recipe_manager.RecipeManager()
    recipe.add_dynamic_config(_EVERYWHERE, _Operator.CONV_2D, 8)
    recipe.add_dynamic_config(
        _EVERYWHERE, _Operator.FULLY_CONNECTED, 8, granularity=_Granularity.TENSORWISE
    )
    _quantize(fp32, path, recipe, None)


def _quantize(fp32: Path, path: Path, recipe: recipe_manager.RecipeManager, ranges: Any) -> None:
    steps: _Recipe = recipe.get_quantization_recipe()
    quantizer.Quantizer(str(fp32), steps).quantize(ranges).export_model(str(path), overwrite=True)


def _ranges(
    fp32: Path, recipe: recipe_manager.RecipeManager, calibration: NDArray[Any]
) -> dict[str, Any]:
    """Returns each tensor's smallest and largest value over the calibration examples."""
    (signature, ends), *_ = Interpreter(str(fp32)).get_signature_list().items()
    name = ends["inputs"][0]
    examples = [{name: calibration[place : place + 1]} for place in range(len(calibration))]
    # The calibrator's default, a moving average, clips: a logit was off by 11.
    calibrator = Calibrator(str(fp32), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    calibrator.calibrate({signature: examples}, recipe)
    ranges: dict[str, Any] = calibrator.get_model_qsvs()
    return ranges
