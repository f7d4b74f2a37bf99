"""What an artefact is compared with: real test examples and what torch says of them."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.edge.runtimes import Floats
from shared_models.errors import InputError, one_line
from shared_models.files import write_atomic
from shared_models.inputs import InputSpec

FILE = "reference.npz"


@dataclass(frozen=True)
class Reference:
    """Raw examples `x`, their labels `y`, and torch's logits `(n, classes)`.

    `meaning` is JSON: what the outputs are called, and how a raw example becomes input.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    logits: Floats
    meaning: str

    def objection(self, labels: tuple[str, ...], inputs: InputSpec) -> str:
        """Returns what of a description is not what was measured, empty if nothing."""
        if meaning_of(labels, inputs) == self.meaning:
            return ""
        try:
            meant = json.loads(self.meaning)["labels"]
        except (ValueError, TypeError, KeyError):
            meant = None
        return "input" if meant == list(labels) else "labels"


def meaning_of(labels: tuple[str, ...], inputs: InputSpec) -> str:
    """Returns labels and input as the reference keeps them: a file that mixes them up is caught."""
    return json.dumps({"labels": labels, "input": asdict(inputs)})


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
        with np.load(path, allow_pickle=False) as file:
            return Reference(file["x"], file["y"], file["logits"], str(file["meaning"]))
    except FileNotFoundError:
        raise InputError(
            f"{path}: is missing; it lies beside the artefact in the run folder"
        ) from None
    except Exception as error:  # numpy raises anything on a damaged file
        raise InputError(f"{path}: damaged: {one_line(str(error))}") from None
