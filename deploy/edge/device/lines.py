"""Raw examples of an .npz or .npy, for a model of words also of a .txt; answers as lines."""

from pathlib import Path

import numpy as np


def read(path, about):
    """Returns raw examples; a text has one in each line."""
    if Path(path).suffix == ".txt":
        from words import tokens_of, words_in

        texts = [words_in(line) for line in Path(path).read_text().splitlines()]
        return tokens_of(texts, about["words"].split(), about["input"]["shape"][-1])
    raw = np.load(path)
    return raw["x"] if hasattr(raw, "files") else raw


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
