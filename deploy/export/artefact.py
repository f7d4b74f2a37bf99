"""An artefact: a file for devices, and beside it a `.json` with all that a device needs to know."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.export.measure import Latency, Parity
from shared_models.errors import ExportError, InputError
from shared_models.files import sha256_of, write_json
from shared_models.inputs import InputSpec


@dataclass(frozen=True)
class Artefact:
    """A measured file: what was quantized, how it compares, whether the gate let it through."""

    file: str
    format: str
    precision: str
    quantization: str
    size_bytes: int
    sha256: str
    task: str
    labels: tuple[str, ...]
    input: InputSpec
    weights_sha256: str
    reference_sha256: str
    parity: Parity
    latency: Latency
    max_accuracy_drop: float
    passed: bool


def describe_path(path: Path) -> Path:
    """Returns where an artefact's description lies: `model.onnx` -> `model.onnx.json`."""
    return path.with_name(path.name + ".json")


def save_artefact(folder: Path, artefact: Artefact) -> None:
    """Writes the description beside the file."""
    write_json(describe_path(folder / artefact.file), asdict(artefact))


def load_artefact(path: Path) -> Artefact:
    """Reads the description of a file; `InputError` when there is none or it is damaged."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    beside = describe_path(path)
    try:
        values: dict[str, Any] = json.loads(beside.read_text())
        spec = {key: _tuple(value) for key, value in values.pop("input").items()}
        return Artefact(
            **{
                **values,
                "labels": tuple(values["labels"]),
                "input": InputSpec(**spec),
                "parity": Parity(**values["parity"]),
                "latency": Latency(**values["latency"]),
            }
        )
    except FileNotFoundError:
        raise InputError(
            f"{beside}: is missing; it lies beside the artefact in the run folder"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{beside}: damaged: {error}") from None


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_hash(path: Path, expected: str) -> None:
    """Raises `ExportError` unless the file is byte for byte the one that was measured."""
    found = sha256_of(path)
    if found != expected:
        raise ExportError(
            f"{path}: is not the file that was measured: sha256 is {found[:12]}…, "
            f"expected {expected[:12]}…"
        )
