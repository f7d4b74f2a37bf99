"""How an artefact compares with torch, and how fast it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from deploy.edge.answers import SCORINGS
from deploy.edge.reference import Reference
from deploy.edge.runtimes import Model, Predict, is_installed, open_model, runtimes_for
from shared_models.errors import ExportError
from shared_models.inputs import InputSpec

_BATCH = 100
MOST_RUNS = 100_000


@dataclass(frozen=True)
class Parity:
    """A score, and agreement with torch on the same examples.

    `metric` names the score; `max_gap` is the largest difference between two outputs.
    """

    examples: int
    metric: str
    score_torch: float
    score: float
    agreement: float
    max_gap: float

    @property
    def drop(self) -> float:
        """How much of the score the artefact lost against torch; negative if it gained."""
        return self.score_torch - self.score


@dataclass(frozen=True)
class Latency:
    """Milliseconds per example, batch 1, one thread, over `runs` after a warm-up."""

    median_ms: float
    p95_ms: float
    runs: Annotated[int, Field(ge=1, le=MOST_RUNS)]


@dataclass(frozen=True)
class Measured:
    """How a file compares with torch, and how fast it is, in one runtime."""

    runtime: str
    version: str
    parity: Parity
    latency: Latency


def measure_parity(predict: Predict, inputs: InputSpec, reference: Reference) -> Parity:
    """Runs every reference example through the artefact and compares with torch's outputs.

    Raises `ExportError` when the file cannot be run on them or answers with other than numbers.
    """
    outputs = np.concatenate(
        [
            predict(inputs.prepare(reference.x[start : start + _BATCH]))
            for start in range(0, len(reference.x), _BATCH)
        ]
    )
    expected = reference.outputs
    if outputs.shape != expected.shape or not np.isfinite(outputs).all():
        raise ExportError(
            f"the file answers with shape {outputs.shape}, NaN or infinite values; "
            f"torch answers with shape {expected.shape}"
        )
    scoring = SCORINGS[reference.answer]
    return Parity(
        examples=len(reference.x),
        metric=scoring.metric,
        score_torch=scoring.score(expected, reference.targets),
        score=scoring.score(outputs, reference.targets),
        agreement=scoring.agreement(outputs, expected),
        max_gap=float(np.abs(outputs - expected).max()),
    )


def measure_latency(model: Model, inputs: InputSpec, reference: Reference, runs: int) -> Latency:
    """Times single examples, one after another, in the process that runs the file."""
    times, _ = model.time(inputs.prepare(reference.x[:_BATCH]), runs)
    return Latency(float(np.median(times)), float(np.percentile(times, 95)), runs)


def measure_everywhere(
    path: Path, inputs: InputSpec, reference: Reference, runs: int
) -> tuple[Measured, ...]:
    """Measures a file in every runtime for it that this machine has.

    Raises `ExportError` when there is none, or when one of them cannot run the file.
    """
    names = [name for name in runtimes_for(path) if is_installed(name)]
    measured = []
    for name in names or [""]:  # none: opening says what to install
        with open_model(path, name) as model:
            parity = measure_parity(model.predict, inputs, reference)
            latency = measure_latency(model, inputs, reference, runs)
            measured.append(Measured(name, model.facts.version, parity, latency))
    return tuple(measured)


def not_tried(path: Path) -> tuple[str, ...]:
    """Returns the runtimes for a file that this machine lacks."""
    return tuple(name for name in runtimes_for(path) if not is_installed(name))
