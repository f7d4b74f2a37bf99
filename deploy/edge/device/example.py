"""Tells what the model makes of each raw example in an .npz or .npy, a line each.

python3 example.py [FILE]    needs numpy and tflite-runtime, ai-edge-litert or onnxruntime
"""

import json
import sys
from pathlib import Path

import numpy as np


def run_onnx(model, x):
    """Returns the outputs of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def run_tflite(model, x):
    """Yields the outputs of a TFLite file, which takes one example at once."""
    try:
        from tflite_runtime.interpreter import Interpreter
    except ImportError:
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model)
    interpreter.allocate_tensors()
    entry, end = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    (scale, zero), (scale_out, zero_out) = entry["quantization"], end["quantization"]
    if scale:  # full int8: numbers are steps of a scale
        x = np.clip(np.round(x / scale) + zero, -128, 127)
    for one in x.astype(entry["dtype"]):
        interpreter.reset_all_variables()
        for part in one.reshape(-1, *entry["shape"]):  # a stream takes one time step at once
            interpreter.set_tensor(entry["index"], part)
            interpreter.invoke()
        y = interpreter.get_tensor(end["index"])[0]
        yield (y.astype(np.float32) - zero_out) * scale_out if scale_out else y


def tell(about, y):
    """Returns an output as a line."""
    if about["answer"] == "classes":
        return about["labels"][np.argmax(y)]
    if about["answer"] == "mask":
        y = (np.argmax(y, 0) if len(y) > 1 else y > 0).astype(int)
    if about["answer"] == "boxes":
        from boxes import decode

        ((places, scores),) = decode(y[None])
        rows = np.column_stack([scores.round(2), places.round()])
        return "".join(" ".join(map(str, row)) + "; " for row in rows)
    return " ".join(map(str, np.ravel(y)))


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    (model,) = (str(path) for path in folder.iterdir() if path.suffix in {".tflite", ".onnx"})
    about = json.loads(Path(model + ".json").read_text())
    raw = np.load(sys.argv[1] if len(sys.argv) > 1 else folder / "reference.npz")
    x = (raw["x"] if hasattr(raw, "files") else raw).reshape(-1, *about["input"]["shape"])
    if about["input"]["dtype"] == "float32":
        x = (np.float32(x) - np.float32(about["input"]["mean"])) / np.float32(about["input"]["std"])
    for y in (run_onnx if model.endswith(".onnx") else run_tflite)(model, x):
        print(tell(about, y))
