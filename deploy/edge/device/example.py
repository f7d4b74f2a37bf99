"""Tells what the model makes of each raw example: `python3 example.py [FILE]`, a line each.

FILE is an .npz or .npy; for a model of words also a .txt, with an example a line.
"""

import json
import sys
from pathlib import Path

import numpy as np
from runtime import run


def read(path, about):
    """Returns raw examples."""
    if path.suffix == ".txt":
        from words import tokens_of, words_in

        texts = [words_in(line) for line in path.read_text().splitlines()]
        return tokens_of(texts, about["words"].split(), about["input"]["shape"][-1])
    raw = np.load(path)
    return raw["x"] if hasattr(raw, "files") else raw


def prepare(raw, shape, dtype, mean, std, **_):
    """Returns raw examples as the model takes them: tokens as they are, other numbers scaled."""
    x = raw.reshape(-1, *shape).astype(dtype)
    return x if dtype == "int64" else (x - np.float32(mean)) / np.float32(std)


def tell(about, y):
    """Returns an answer as a line."""
    if about["answer"] == "classes":
        return about["labels"][np.argmax(y)]
    if about["answer"] == "boxes":
        from boxes import decode

        ((places, scores),) = decode(y[None])
        rows = np.column_stack([scores.round(2), places.round()])
        return "".join(" ".join(map(str, row)) + "; " for row in rows)
    if about["answer"] == "mask":
        y = (np.argmax(y, 0) if len(y) > 1 else y > 0).astype(int)
    return " ".join(map(str, np.ravel(y)))


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    (model,) = [path for path in folder.iterdir() if path.suffix in {".tflite", ".onnx"}]
    about = json.loads(Path(f"{model}.json").read_text())
    raw = read(Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "reference.npz", about)
    for y in run(str(model), prepare(raw, **about["input"])):
        print(tell(about, y))
