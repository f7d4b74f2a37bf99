"""Repeats an artefact's measurement, on any machine that has the runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deploy.export.artefact import Artefact, check_hash, load_artefact
from deploy.export.measure import measure_latency, measure_parity
from deploy.export.reference import FILE, load_reference
from deploy.export.runtimes import open_model
from shared_models.errors import ExportError


def verify(path: Path) -> Artefact:
    """Returns the artefact measured anew, against the reference that lies beside it.

    Raises `ExportError` when the file is another one, cannot be run, or fails its gate.
    """
    described = load_artefact(path)
    check_hash(path, described.sha256)
    beside = path.parent / FILE
    reference = load_reference(beside)
    check_hash(beside, described.reference_sha256)
    predict = open_model(path)
    parity = measure_parity(predict, described.input, reference)
    latency = measure_latency(predict, described.input, reference, described.latency.runs)
    if parity.accuracy_drop > described.max_accuracy_drop:
        raise ExportError(
            f"{path}: accuracy {parity.accuracy:.4f} is more than "
            f"{described.max_accuracy_drop:g} below torch's {parity.accuracy_torch:.4f}"
        )
    return replace(described, parity=parity, latency=latency, passed=True)
