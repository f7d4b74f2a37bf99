"""Runs a TFLite file; needs tflite-runtime or ai-edge-litert."""

import numpy as np

try:
    from tflite_runtime.interpreter import Interpreter
except ImportError:
    from ai_edge_litert.interpreter import Interpreter


def run(model, x):
    """Yields the output for each example: the file takes one at once."""
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
