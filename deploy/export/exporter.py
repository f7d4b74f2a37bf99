"""From a finished run folder to measured files."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from deploy.edge.artefact import Artefact, Gate, objection, save_artefact
from deploy.edge.measure import Measured, measure_everywhere, not_tried
from deploy.edge.quiet import quietly
from deploy.edge.reference import FILE, Reference, save_reference
from deploy.edge.runtimes import runtimes_for
from deploy.export.calibration import Calibration, calibration_of
from deploy.export.formats import FORMATS, choose, export
from deploy.export.formats.metadata import fill_in, reserve
from deploy.export.formats.source import Made, Source
from deploy.export.shipping import Shipped, reference_of, shipped, words_of
from server.run_folder import UNFINISHED, RunFolder
from shared_models.arrays import load_arrays
from shared_models.config import ExportStage
from shared_models.errors import ExportError, InputError, WildflowerError, one_line
from shared_models.files import sha256_of
from shared_models.stage_task import final_task
from shared_models.task import Task

T = TypeVar("T")

_PARITY_BYTES = 230  # what one runtime's parity takes of the metadata, at the most


@dataclass(frozen=True)
class Written:
    """A file that was written but not measured yet."""

    path: Path
    format: str
    made: Made


@dataclass(frozen=True)
class Origin:
    """Where weights come from: the run folder's name, and the round of its last learning stage."""

    run: str
    round: int
    weights_sha256: str


@dataclass(frozen=True)
class Subject:
    """A trained model, and what it takes to export it and to compare the files with it."""

    task: Task
    shipped: Shipped
    origin: Origin
    calibration: Calibration
    reference: Reference
    words: str


def export_run(
    folder: RunFolder, stage: ExportStage, observe: Callable[[Artefact], None]
) -> tuple[Artefact, ...]:
    """Exports the final weights of a run as the stage asks; raises `ExportError` when a gate fails.

    Every file is written, executed and described before the gate speaks, so that nothing is lost.
    """
    subject = _load_subject(folder, stage)
    answer = subject.reference.answer
    names = choose(subject.shipped.model, stage.formats, stage.quantize, answer)
    folder.export.mkdir(exist_ok=True)
    save_reference(folder.export / FILE, subject.reference)
    made = []
    with tempfile.TemporaryDirectory(dir=folder.export, prefix=UNFINISHED) as workshop:
        told = subject.calibration
        source = Source(
            subject.shipped.model, told.examples, Path(workshop), told.ranges, told.text
        )
        for name in names:
            artefact = _finish(subject, stage, _write(source, name), folder.export)
            observe(artefact)
            made.append(artefact)
    for artefact in made:
        if why := objection(artefact.gate, artefact.measured):
            raise ExportError(f"{artefact.file}: {why}; the files are kept for inspection")
    return tuple(made)


def _load_subject(folder: RunFolder, stage: ExportStage) -> Subject:
    config = folder.config()
    if not folder.model_file.is_file():
        raise InputError(
            f"{folder.path}: has no model.safetensors yet; finish it with "
            f"`wildflower simulate {folder.path} --resume`"
        )
    origin = _origin(folder)
    task = final_task(config)
    model = task.model().eval()
    model.load_state_dict(load_arrays(folder.model_file))
    model.float()
    ours = shipped(task, model)
    return Subject(
        task,
        ours,
        origin,
        calibration_of(folder, stage, task, origin.weights_sha256),
        reference_of(config, stage, task, ours),
        words_of(config, task),
    )


def _origin(folder: RunFolder) -> Origin:
    summary, weights = folder.summary(), sha256_of(folder.model_file)
    if weights != summary.get("model_sha256", weights):
        raise ExportError(
            f"{folder.model_file}: damaged: it is not what was trained; "
            f"`wildflower simulate {folder.path} --resume` restores it"
        )
    last = folder.records()[-1]
    kept = last.best if folder.config().learning_stages[-1].keep_best else None
    return Origin(folder.path.resolve().name, kept.round if kept else last.round, weights)


def _write(source: Source, name: str) -> Written:
    """Writes one file, in which there is room for what it will tell of itself."""
    path = source.workshop / FORMATS[name].file
    made = attempt(path.name, lambda: export(source, name, path))
    return Written(path, name, made)


def attempt(what: str, make: Callable[[], T]) -> T:
    """Calls a converter in silence; what it raises becomes an `ExportError` that says where."""
    try:
        with quietly():
            return make()
    except ImportError:
        raise
    except Exception as error:  # converters raise anything, and wrap what they did not raise
        _raise_if_wrapped(error)
        ours = isinstance(error, WildflowerError)
        reason = str(error) if ours else one_line(f"{type(error).__name__}: {error}")
        raise ExportError(f"{what}: cannot be made: {reason}") from None


def _raise_if_wrapped(error: BaseException) -> None:
    """Raises what is no fault of the converter's: the user's Ctrl-C, a full disk."""
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or isinstance(cause, KeyboardInterrupt):
            raise cause
        cause = cause.__cause__ or cause.__context__


def _finish(subject: Subject, stage: ExportStage, written: Written, folder: Path) -> Artefact:
    """Measures a file, then puts it and its description where they belong."""
    path, told = written.path, _told(subject, written)
    room = len(_text(told)) + _PARITY_BYTES * len(runtimes_for(path))
    reserve(path, room)
    measured = measure_everywhere(
        path, subject.shipped.input, subject.reference, stage.latency_runs
    )
    fill_in(path, _text({**told, "measured": [_parity(one) for one in measured]}), room)
    gate = Gate(stage.max_score_drop, stage.min_agreement)
    artefact = Artefact(
        **told,
        file=path.name,
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        reference_sha256=sha256_of(folder / FILE),
        measured=measured,
        not_tried=not_tried(path),
        gate=gate,
        passed=not objection(gate, measured),
    )
    path.chmod(0o644)  # some exporters make their files executable
    path.replace(folder / path.name)
    save_artefact(folder, artefact)
    return artefact


def _told(subject: Subject, written: Written) -> dict[str, Any]:
    """Returns what is known of a file before it was run."""
    task = subject.task
    return {
        "format": written.format,
        "quantization": written.made.quantization,
        "notes": written.made.notes,
        "stream": written.format.startswith("tflite-stream"),
        "task": task.name,
        "answer": task.answer,
        "labels": task.labels,
        "input": subject.shipped.input,
        "words": subject.words,
        **asdict(subject.origin),
    }


def _parity(measured: Measured) -> dict[str, Any]:
    """Returns what a file tells of itself in a runtime: six figures are enough."""
    own = asdict(measured.parity)
    rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in own.items()}
    return {"runtime": measured.runtime, "version": measured.version, "parity": rounded}


def _text(told: Mapping[str, Any]) -> str:
    """Returns JSON without a needless byte."""
    plain = {**told, "input": asdict(told["input"])}
    return json.dumps(plain, separators=(",", ":"))
