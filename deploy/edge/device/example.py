"""Tells what the model makes of each raw example: `python3 example.py [FILE]`, a line each."""

import json
import sys
from pathlib import Path

import numpy as np
from lines import read, tell
from runtime import run


def prepare(raw, shape, dtype, mean, std, **_):
    """Returns raw examples as the model takes them: tokens as they are, other numbers scaled."""
    x = raw.reshape(-1, *shape).astype(dtype)
    return x if dtype == "int64" else (x - np.float32(mean)) / np.float32(std)


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    (model,) = [path for path in folder.iterdir() if path.suffix in {".tflite", ".onnx"}]
    about = json.loads(Path(f"{model}.json").read_text())
    raw = read(sys.argv[1] if len(sys.argv) > 1 else folder / "reference.npz", about)
    for y in run(str(model), prepare(raw, **about["input"])):
        print(tell(about, y))
