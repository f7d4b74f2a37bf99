"""Repeats an artefact's measurement, on any machine that has the runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deploy.edge.artefact import Artefact, check_hash, load_artefact
from deploy.edge.measure import measure_latency, measure_parity
from deploy.edge.reference import FILE, load_reference
from deploy.edge.runtimes import open_model
from shared_models.errors import ExportError, InputError


def verify(path: Path) -> Artefact:
    """Returns the artefact measured anew, against the reference that lies beside it.

    Raises `ExportError` when the file is another one, cannot be run, or fails its gate.
    """
    described = load_artefact(path)
    beside = path.parent / FILE
    check_hash(path, described.sha256)
    check_hash(beside, described.reference_sha256)
    reference = load_reference(beside)
    if not described.input.fits(reference.x.shape[1:]):
        raise InputError(f"{path}: its description takes input of another shape than {beside} has")
    predict = open_model(path)
    parity = measure_parity(predict, described.input, reference)
    latency = measure_latency(predict, described.input, reference, described.latency.runs)
    if objection := described.gate.objection(parity):
        raise ExportError(f"{path}: {objection}")
    return replace(described, parity=parity, latency=latency, passed=True)
