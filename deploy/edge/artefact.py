"""An artefact: a file for devices, and beside it a `.json` with all that a device needs to know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from deploy.edge.measure import Latency, Measured, Parity
from shared_models.answers import Answer
from shared_models.errors import ExportError, InputError, one_line
from shared_models.files import sha256_of, write_json
from shared_models.inputs import InputSpec

_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Gate:
    """What a file must keep to be let through."""

    max_score_drop: Annotated[float, Field(ge=0, le=1)]
    min_agreement: Annotated[float, Field(ge=0, le=1)]

    def objection(self, parity: Parity) -> str:
        """Returns why a file with this parity is not let through, empty if it is."""
        if parity.drop > self.max_score_drop:
            return (
                f"{parity.metric} fell from {parity.score_torch:.4f} to {parity.score:.4f}, "
                f"more than max_score_drop {self.max_score_drop:g}"
            )
        if parity.agreement < self.min_agreement:
            return (
                f"it agrees with torch on {parity.agreement:.4f} of the examples, "
                f"less than min_agreement {self.min_agreement:g}"
            )
        return ""


@dataclass(frozen=True)
class Artefact:
    """A measured file: what was quantized, how it compares, whether the gate let it through.

    It was run in each runtime of `measured`; those of `not_tried` were not there to run it.
    """

    file: str
    format: str
    quantization: str
    notes: str
    stream: bool
    size_bytes: int
    sha256: str
    task: str
    answer: Answer
    labels: tuple[str, ...]
    input: InputSpec
    run: str
    round: int
    weights_sha256: str
    reference_sha256: str
    measured: Annotated[tuple[Measured, ...], Field(min_length=1)]
    not_tried: tuple[str, ...]
    gate: Gate
    passed: bool
    words: str = ""

    @property
    def parity(self) -> Parity:
        """How it compares in the first of its runtimes."""
        return self.measured[0].parity

    @property
    def latency(self) -> Latency:
        """How fast it is in the first of its runtimes."""
        return self.measured[0].latency


def objection(gate: Gate, measured: Iterable[Measured]) -> str:
    """Returns in which runtime a file is not let through and why, empty if it is in all."""
    for one in measured:
        if why := gate.objection(one.parity):
            return f"on {one.runtime} {one.version}: {why}"
    return ""


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
        with beside.open("rb") as file:
            return TypeAdapter(Artefact).validate_json(file.read(_MOST_BYTES))
    except FileNotFoundError:
        raise InputError(
            f"{beside}: is missing; it lies beside the artefact in the run folder"
        ) from None
    except ValidationError as error:
        raise InputError(f"{beside}: damaged: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    return one_line(f"{'.'.join(map(str, problem['loc']))} {problem['msg']}")


def check_hash(path: Path, expected: str) -> None:
    """Raises `ExportError` unless the file is byte for byte the one that was measured."""
    if not path.is_file():
        raise InputError(f"{path}: is missing; it lies beside the artefact in the run folder")
    found = sha256_of(path)
    if found != expected:
        raise ExportError(
            f"{path}: is not the file that was measured: sha256 is {found[:12]}…, "
            f"expected {expected[:12]}…"
        )
