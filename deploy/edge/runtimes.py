"""Runs a file in the runtime that devices have: ONNX Runtime or LiteRT. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deploy.edge.quiet import quietly
from shared_models.errors import ExportError, InputError, one_line

Floats: TypeAlias = NDArray[np.float32]
Predict: TypeAlias = Callable[[NDArray[Any]], Floats]
"""From model input `(n, ...)` to logits `(n, classes)`."""


def open_model(path: Path) -> Predict:
    """Returns a function that runs the file on one thread; the suffix says which runtime."""
    opener = {".onnx": _open_onnx, ".tflite": _open_tflite}.get(path.suffix)
    if opener is None:
        raise InputError(f"{path}: expected a file that ends in .onnx or .tflite")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        return _named(path, opener(path))
    except ImportError as error:
        raise ExportError(
            f"{path}: its runtime is not installed: {error}; install the `edge` extra"
        ) from None
    except Exception as error:  # both runtimes raise untyped errors for damaged files
        raise ExportError(f"{path}: the runtime cannot load it: {one_line(str(error))}") from None


def _named(path: Path, predict: Predict) -> Predict:
    """Returns `predict` whose failures name the file: the runtimes' own errors do not."""

    def named(x: NDArray[Any]) -> Floats:
        try:
            return predict(x)
        except Exception as error:
            raise ExportError(
                f"{path}: the runtime cannot run it: {one_line(str(error))}"
            ) from None

    return named


def _open_onnx(path: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(x: NDArray[Any]) -> Floats:
        outputs: Floats = session.run(None, {name: x})[0]
        return outputs

    return predict


def _open_tflite(path: Path) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    with quietly():  # the runtime announces its delegate on standard error
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
    entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def predict_one(x: NDArray[Any]) -> Floats:
        interpreter.reset_all_variables()  # a recurrent model starts every example afresh
        interpreter.set_tensor(entry["index"], _quantize(x, entry))
        interpreter.invoke()
        return _dequantize(interpreter.get_tensor(exit_["index"]), exit_)

    def predict(x: NDArray[Any]) -> Floats:
        # The file's batch is fixed at 1: some converted operators do not take another.
        return np.concatenate([predict_one(x[place : place + 1]) for place in range(len(x))])

    return predict


def _quantize(x: NDArray[Any], detail: dict[str, Any]) -> NDArray[Any]:
    scale, zero = detail["quantization"]
    if not scale:
        return x.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    steps: NDArray[Any] = np.clip(np.round(x / scale) + zero, limits.min, limits.max)
    return steps.astype(detail["dtype"])


def _dequantize(y: NDArray[Any], detail: dict[str, Any]) -> Floats:
    scale, zero = detail["quantization"]
    values: Floats = y.astype(np.float32)
    return (values - np.float32(zero)) * np.float32(scale) if scale else values
