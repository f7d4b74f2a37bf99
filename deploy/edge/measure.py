"""How an artefact compares with torch, and how fast it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from deploy.edge.reference import Reference
from deploy.edge.runtimes import Predict
from shared_models.errors import ExportError
from shared_models.inputs import InputSpec

_BATCH = 100


@dataclass(frozen=True)
class Parity:
    """Agreement with torch on the same examples; `max_logit_gap` is the largest difference."""

    examples: int
    accuracy_torch: float
    accuracy: float
    agreement: float
    max_logit_gap: float

    @property
    def accuracy_drop(self) -> float:
        """How much accuracy the artefact lost against torch; negative if it gained."""
        return self.accuracy_torch - self.accuracy


@dataclass(frozen=True)
class Latency:
    """Milliseconds per example, batch 1, one thread, over `runs` after a warm-up."""

    median_ms: float
    p95_ms: float
    runs: Annotated[int, Field(ge=1)]


def measure_parity(predict: Predict, inputs: InputSpec, reference: Reference) -> Parity:
    """Runs every reference example through the artefact and compares with torch's logits.

    Raises `ExportError` when the file cannot be run on them or answers with other than numbers.
    """
    logits = np.concatenate(
        [
            predict(inputs.prepare(reference.x[start : start + _BATCH]))
            for start in range(0, len(reference.x), _BATCH)
        ]
    )
    if logits.shape != reference.logits.shape or not np.isfinite(logits).all():
        raise ExportError(
            f"the file answers with shape {logits.shape}, NaN or infinite values; "
            f"torch answers with shape {reference.logits.shape}"
        )
    told, expected = logits.argmax(axis=1), reference.logits.argmax(axis=1)
    return Parity(
        examples=len(reference.x),
        accuracy_torch=float((expected == reference.y).mean()),
        accuracy=float((told == reference.y).mean()),
        agreement=float((told == expected).mean()),
        max_logit_gap=float(np.abs(logits - reference.logits).max()),
    )


def measure_latency(
    predict: Predict, inputs: InputSpec, reference: Reference, runs: int
) -> Latency:
    """Times single examples, one after another."""
    examples = inputs.prepare(reference.x[:_BATCH])
    for place in range(min(10, len(examples))):
        predict(examples[place : place + 1])
    times = []
    for place in range(runs):
        one = examples[place % len(examples)][None]
        began = time.perf_counter()
        predict(one)
        times.append((time.perf_counter() - began) * 1e3)
    return Latency(float(np.median(times)), float(np.percentile(times, 95)), runs)
