"""Tells the label, mask, boxes or numbers for each example in an .npz or .npy of raw examples.

python3 example.py [FILE]    needs numpy and tflite-runtime, ai-edge-litert or onnxruntime
"""

import json
import sys
from pathlib import Path

import numpy as np


def run_onnx(model, x):
    """Returns the outputs of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model))
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def run_tflite(model, x):
    """Returns the outputs of a TFLite file, which takes one example at once."""
    try:
        from tflite_runtime.interpreter import Interpreter
    except ImportError:
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model_path=str(model))
    interpreter.allocate_tensors()
    entry, end = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = entry["quantization"]
    if scale:  # full int8: it takes steps of a scale
        x = np.clip(np.round(x / scale) + zero, -128, 127)
    outputs = []
    for one in x.astype(entry["dtype"]):
        interpreter.reset_all_variables()
        for part in one.reshape(-1, *entry["shape"]):  # a stream takes one time step at once
            interpreter.set_tensor(entry["index"], part)
            interpreter.invoke()
        output, (scale, zero) = interpreter.get_tensor(end["index"])[0], end["quantization"]
        outputs.append((output.astype(np.float32) - zero) * scale if scale else output)
    return outputs


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    model = next(path for path in folder.iterdir() if path.suffix in {".tflite", ".onnx"})
    about = json.loads((folder / (model.name + ".json")).read_text())
    spec = about["input"]
    raw = np.load(sys.argv[1] if len(sys.argv) > 1 else folder / "reference.npz")
    raw = raw["x"] if hasattr(raw, "files") else raw
    x = raw.reshape(len(raw), *spec["shape"]).astype(spec["dtype"])
    if spec["dtype"] == "float32":
        x = (x - np.float32(spec["mean"])) / np.float32(spec["std"])
    for outputs in (run_onnx if model.suffix == ".onnx" else run_tflite)(model, x):
        if about["answer"] == "classes":
            print(about["labels"][np.argmax(outputs)])
        elif about["answer"] == "mask":
            print(*(np.argmax(outputs, 0) if len(outputs) > 1 else outputs > 0).astype(int).ravel())
        elif about["answer"] == "boxes":
            from boxes import decode

            (found,) = decode(outputs[None])
            for place, score in zip(*found):  # noqa: B905  # older Pythons know no strict
                print(f"{score:.2f}", *place.round(), end="; ")
            print()
        else:
            print(*np.ravel(outputs))
