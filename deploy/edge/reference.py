"""What an artefact is compared with: real test examples and what torch says of them."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from deploy.edge.runtimes import Floats
from shared_models.answers import Answer
from shared_models.errors import InputError, one_line
from shared_models.files import write_atomic
from shared_models.inputs import InputSpec

FILE = "reference.npz"
_MOST_BYTES, _SMALL_BYTES, _MOST_TIMES = 1 << 30, 1 << 26, 100


@dataclass(frozen=True)
class Reference:
    """Raw examples `x`, what is right for them, and torch's outputs; an example a row in each.

    `answer` is what the outputs are. `meaning` is JSON: what they are called, and how a raw example
    becomes input.
    """

    x: NDArray[Any]
    targets: NDArray[Any]
    outputs: Floats
    answer: Answer
    meaning: str

    def __post_init__(self) -> None:
        kinds = [own.dtype.kind in "fiub" for own in (self.x, self.targets, self.outputs)]
        rows = {len(own) if own.ndim else 0 for own in (self.x, self.targets, self.outputs)}
        if not all(kinds) or len(rows) != 1 or 0 in rows:
            raise ValueError("it has no numbers, or not as many in each of its arrays")

    def objection(self, meaning: str) -> str:
        """Returns which part of a meaning is not what was measured, empty if none is."""
        if meaning == self.meaning:
            return ""
        theirs = json.loads(meaning)
        try:
            ours = dict(json.loads(self.meaning))
        except (ValueError, TypeError, RecursionError):
            ours = {}
        return next((name for name in theirs if theirs[name] != ours.get(name)), "input")


def meaning_of(labels: tuple[str, ...], inputs: InputSpec, answer: Answer) -> str:
    """Returns what a file means as the reference keeps it: one that mixes it up is caught."""
    return json.dumps({"labels": labels, "input": asdict(inputs), "answer": answer})


def save_reference(path: Path, reference: Reference) -> None:
    """Writes the reference beside the artefacts, so that a device can verify without torch."""
    write_atomic(path, reference_bytes(reference))


def reference_bytes(reference: Reference) -> bytes:
    """Returns the reference as a file, the same bytes each time."""
    content = io.BytesIO()
    np.savez_compressed(content, **asdict(reference))
    return content.getvalue()


def load_reference(path: Path) -> Reference:
    """Reads a reference; raises `InputError` when it is missing or damaged."""
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as file:
            answer: Answer = TypeAdapter(Answer).validate_python(str(file["answer"]))
            told = str(file["meaning"])
            return Reference(file["x"], file["targets"], file["outputs"], answer, told)
    except FileNotFoundError:
        raise InputError(
            f"{path}: is missing; it lies beside the artefact in the run folder"
        ) from None
    except Exception as error:  # numpy raises anything on a damaged file
        raise InputError(f"{path}: damaged: {one_line(str(error))}") from None


def _check_size(path: Path) -> None:
    """Raises `ValueError` for a file that unpacks to more than examples do."""
    with zipfile.ZipFile(path) as file:
        unpacked = sum(entry.file_size for entry in file.infolist())
    if unpacked > min(_MOST_BYTES, _SMALL_BYTES + _MOST_TIMES * path.stat().st_size):
        raise ValueError(f"it unpacks to {unpacked >> 20} MB")
