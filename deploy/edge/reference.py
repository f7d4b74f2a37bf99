"""What an artefact is compared with: real test examples and what torch says of them."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.edge.runtimes import Floats
from shared_models.errors import InputError, one_line
from shared_models.files import write_atomic

FILE = "reference.npz"


@dataclass(frozen=True)
class Reference:
    """Raw examples `x`, their labels `y`, and torch's logits `(n, classes)`."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    logits: Floats


def save_reference(path: Path, reference: Reference) -> None:
    """Writes the reference beside the artefacts, so that a device can verify without torch."""
    content = io.BytesIO()
    np.savez_compressed(content, **asdict(reference))
    write_atomic(path, content.getvalue())


def load_reference(path: Path) -> Reference:
    """Reads a reference; raises `InputError` when it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Reference(file["x"], file["y"], file["logits"])
    except FileNotFoundError:
        raise InputError(
            f"{path}: is missing; it lies beside the artefact in the run folder"
        ) from None
    except Exception as error:  # numpy raises anything on a damaged file
        raise InputError(f"{path}: damaged: {one_line(str(error))}") from None
