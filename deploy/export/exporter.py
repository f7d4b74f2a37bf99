"""From a finished run folder to measured files."""

from __future__ import annotations

import errno
import importlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.edge.artefact import Artefact, Gate, objection, save_artefact
from deploy.edge.measure import measure_everywhere, not_tried
from deploy.edge.quiet import quietly
from deploy.edge.reference import FILE, Reference, meaning_of, save_reference
from server.evaluation import evaluation_split
from server.run_folder import UNFINISHED, RunFolder
from shared_models.arrays import load_arrays
from shared_models.config import Config, ExportStage
from shared_models.datasets.dataset import Split
from shared_models.datasets.load import load_task_data
from shared_models.errors import ExportError, InputError, one_line
from shared_models.files import sha256_of
from shared_models.randomness import generator
from shared_models.task import Task
from shared_models.tasks import load_task

T = TypeVar("T")

_FORMATS = {"onnx": "deploy.export.onnx", "tflite": "deploy.export.tflite"}


@dataclass(frozen=True)
class Written:
    """A file that was written but not measured yet."""

    path: Path
    format: str
    precision: str
    quantization: str


@dataclass(frozen=True)
class Subject:
    """A trained model, and what it takes to export it and to compare the files with it."""

    task: Task
    model: nn.Module
    weights_sha256: str
    calibration: NDArray[Any]
    reference: Reference


def export_run(
    folder: RunFolder, stage: ExportStage, observe: Callable[[Artefact], None]
) -> tuple[Artefact, ...]:
    """Exports the final weights of a run as the stage asks; raises `ExportError` when a gate fails.

    Every file is written, executed and described before the gate speaks, so that nothing is lost.
    """
    subject = _load_subject(folder, stage)
    folder.export.mkdir(exist_ok=True)
    save_reference(folder.export / FILE, subject.reference)
    made = []
    for name in dict.fromkeys(stage.formats):
        with tempfile.TemporaryDirectory(dir=folder.export, prefix=UNFINISHED) as workshop:
            for written in _write(name, subject, stage, Path(workshop)):
                artefact = _finish(subject, stage, written, folder.export)
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
    weights = sha256_of(folder.model_file)
    if weights != folder.summary().get("model_sha256", weights):
        raise ExportError(
            f"{folder.model_file}: damaged: it is not what was trained; "
            f"`wildflower simulate {folder.path} --resume` restores it"
        )
    task = load_task(config.task)
    model = task.model().eval()
    model.load_state_dict(load_arrays(folder.model_file))
    model.float()
    return Subject(
        task,
        model,
        weights,
        _calibration(config, task, stage),
        _reference(config, task, model, stage),
    )


def _calibration(config: Config, task: Task, stage: ExportStage) -> NDArray[Any]:
    """Returns model input drawn from the clients' training examples, never from test data."""
    train = load_task_data(task, config.data.name, config.data.root).train
    count = min(stage.calibration_examples, len(train))
    rng = generator(config.seed, stage.name, "calibration")
    return task.input.prepare(train.x[np.sort(rng.choice(len(train), count, replace=False))])


def _reference(config: Config, task: Task, model: nn.Module, stage: ExportStage) -> Reference:
    split = evaluation_split(config, task)
    if split is None:
        raise ExportError(
            "export needs test data to measure its files on: "
            "set evaluate.data to 'test' or to a path ending in .npz"
        )
    count = min(stage.test_examples, len(split))
    spread = np.linspace(0, len(split) - 1, count).astype(np.int64)
    return Reference(
        split.x[spread],
        split.y[spread],
        _logits(task, model, split, spread),
        meaning_of(task.labels, task.input),
    )


@torch.inference_mode()
def _logits(
    task: Task, model: nn.Module, split: Split, index: NDArray[np.int64]
) -> NDArray[np.float32]:
    parts = [
        model(torch.from_numpy(task.input.prepare(split.x[part]))).numpy()
        for part in np.array_split(index, max(1, len(index) // 100))
    ]
    return np.concatenate(parts)


def _write(name: str, subject: Subject, stage: ExportStage, workshop: Path) -> Iterator[Written]:
    """Writes the files of one format, one after another."""
    exporter = attempt(f"{name}: exporter", lambda: importlib.import_module(_FORMATS[name]))
    fp32, int8 = (workshop / f"model-{precision}.{name}" for precision in ("fp32", "int8"))
    sample = subject.calibration[:1].repeat(2, axis=0)
    attempt(fp32.name, lambda: exporter.export_fp32(subject.model, sample, fp32))
    done = "none"
    if "int8" in stage.quantize:
        done = attempt(int8.name, lambda: _quantize(exporter, subject, fp32, int8))
    if "fp32" in stage.quantize:
        yield Written(fp32, name, "fp32", "none")
    if "int8" in stage.quantize:
        yield Written(int8, name, "int8", done)


def attempt(what: str, make: Callable[[], T]) -> T:
    """Calls a converter in silence; what it raises becomes an `ExportError` that says where."""
    try:
        with quietly():
            return make()
    except ImportError:
        raise
    except Exception as error:  # converters raise anything, and wrap what they did not raise
        _raise_if_wrapped(error)
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ExportError(f"{what}: cannot be made: {reason}") from None


def _raise_if_wrapped(error: BaseException) -> None:
    """Raises what is no fault of the converter's: the user's Ctrl-C, a full disk."""
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or isinstance(cause, KeyboardInterrupt):
            raise cause
        cause = cause.__cause__ or cause.__context__


def _quantize(exporter: ModuleType, subject: Subject, fp32: Path, int8: Path) -> str:
    if any(isinstance(module, nn.RNNBase) for module in subject.model.modules()):
        exporter.quantize_weights(fp32, int8)
        return "int8 weights"
    exporter.quantize_full(fp32, int8, subject.calibration)
    return "int8 weights and activations"


def _finish(subject: Subject, stage: ExportStage, written: Written, folder: Path) -> Artefact:
    """Measures a file, then puts it and its description where they belong."""
    task, path = subject.task, written.path
    measured = measure_everywhere(path, task.input, subject.reference, stage.latency_runs)
    gate = Gate(stage.max_accuracy_drop, stage.min_agreement)
    artefact = Artefact(
        file=path.name,
        format=written.format,
        precision=written.precision,
        quantization=written.quantization,
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        task=task.name,
        labels=task.labels,
        input=task.input,
        weights_sha256=subject.weights_sha256,
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
