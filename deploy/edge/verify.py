"""Repeats an artefact's measurement, on any machine that has a runtime for it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from deploy.edge.artefact import Artefact, check_hash, load_artefact, objection
from deploy.edge.bundle import open_bundle
from deploy.edge.card import card_inside, card_of
from deploy.edge.measure import measure_everywhere, not_tried
from deploy.edge.reference import FILE, Reference, load_reference, meaning_of
from deploy.edge.runtimes import runtimes_for
from shared_models.errors import ExportError, InputError, WildflowerError


def verify_bundle(path: Path, public_key: Path | None = None) -> tuple[Artefact, bool]:
    """Returns the artefact in a bundle measured anew, and whether the bundle is signed.

    Raises `ExportError` when it is damaged or not signed with the key, and whatever `verify` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(path, Path(folder), public_key)
        try:
            return verify(bundle.model), bundle.signed
        except WildflowerError as error:  # the folder means nothing to the user
            raise type(error)(str(error).replace(f"{folder}/", f"{path}: ")) from None


def verify(path: Path) -> Artefact:
    """Returns the artefact measured anew, against the reference that lies beside it.

    Raises `ExportError` when the file is another one, means something else than what was measured,
    cannot be run, or fails its gate in one of the runtimes that this machine has.
    """
    runtimes_for(path)  # what no runtime is for has no description either
    described = load_artefact(path)
    check_hash(path, described.sha256)
    reference = _reference_of(path, described)
    _check_inside(path, described)
    measured = measure_everywhere(
        path, described.input, reference, described.measured[0].latency.runs
    )
    if why := objection(described.gate, measured):
        raise ExportError(f"{path}: {why}")
    return replace(described, measured=measured, not_tried=not_tried(path), passed=True)


def _check_inside(path: Path, described: Artefact) -> None:
    """Raises `ExportError` when the file says something else of itself than its description."""
    inside = card_inside(path)
    if inside not in {None, card_of(described)}:
        raise ExportError(f"{path}: its answer, labels or input are not those of its description")


def _reference_of(path: Path, described: Artefact) -> Reference:
    """Returns what a file is compared with, if the two describe the same thing."""
    beside = path.parent / FILE
    check_hash(beside, described.reference_sha256)
    reference = load_reference(beside)
    if not described.input.fits(reference.x.shape[1:]):
        raise InputError(f"{path}: its description takes input of another shape than {beside} has")
    meaning = meaning_of(described.labels, described.input, described.answer)
    if other := reference.objection(meaning):
        raise ExportError(f"{path}: its description's `{other}` is not what was measured")
    return reference
