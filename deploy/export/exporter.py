"""From a finished run folder to measured files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.export.artefact import Artefact, save_artefact
from deploy.export.measure import measure_latency, measure_parity
from deploy.export.quiet import quietly
from deploy.export.reference import FILE, Reference, save_reference
from deploy.export.runtimes import open_model
from server.evaluation import evaluation_split
from server.run_folder import RunFolder
from shared_models.arrays import load_arrays
from shared_models.config import Config, ExportStage
from shared_models.datasets.dataset import Split
from shared_models.datasets.load import load_task_data
from shared_models.errors import ExportError, InputError
from shared_models.files import sha256_of
from shared_models.randomness import generator
from shared_models.task import Task
from shared_models.tasks import load_task

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
    for name in stage.formats:
        for written in _write(name, subject, stage, folder.export):
            artefact = _measure(subject, stage, written)
            save_artefact(folder.export, artefact)
            observe(artefact)
            made.append(artefact)
    _gate(made)
    return tuple(made)


def _load_subject(folder: RunFolder, stage: ExportStage) -> Subject:
    config = folder.config()
    if not folder.model_file.is_file():
        raise InputError(
            f"{folder.path}: has no model.safetensors yet; finish it with "
            f"`wildflower simulate {folder.path} --resume`"
        )
    task = load_task(config.task)
    model = task.model().eval()
    model.load_state_dict(load_arrays(folder.model_file))
    model.float()
    return Subject(
        task,
        model,
        sha256_of(folder.model_file),
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
    return Reference(split.x[spread], split.y[spread], _logits(task, model, split, spread))


@torch.inference_mode()
def _logits(
    task: Task, model: nn.Module, split: Split, index: NDArray[np.int64]
) -> NDArray[np.float32]:
    parts = [
        model(torch.from_numpy(task.input.prepare(split.x[part]))).numpy()
        for part in np.array_split(index, max(1, len(index) // 100))
    ]
    return np.concatenate(parts)


def _write(name: str, subject: Subject, stage: ExportStage, folder: Path) -> Iterator[Written]:
    """Writes the files of one format, one after another."""
    with quietly():
        exporter = importlib.import_module(_FORMATS[name])
        fp32 = folder / f"model-fp32.{name}"
        exporter.export_fp32(subject.model, subject.calibration[:2], fp32)
    if "fp32" in stage.quantize:
        yield Written(fp32, name, "fp32", "none")
    if "int8" in stage.quantize:
        int8 = folder / f"model-int8.{name}"
        with quietly():
            done = _quantize(exporter, subject, fp32, int8)
        yield Written(int8, name, "int8", done)
    if "fp32" not in stage.quantize:
        fp32.unlink()


def _quantize(exporter: ModuleType, subject: Subject, fp32: Path, int8: Path) -> str:
    if any(isinstance(module, nn.RNNBase) for module in subject.model.modules()):
        exporter.quantize_weights(fp32, int8)
        return "int8 weights"
    exporter.quantize_full(fp32, int8, subject.calibration)
    return "int8 weights and activations"


def _measure(subject: Subject, stage: ExportStage, written: Written) -> Artefact:
    task = subject.task
    predict = open_model(written.path)
    parity = measure_parity(predict, task.input, subject.reference)
    return Artefact(
        file=written.path.name,
        format=written.format,
        precision=written.precision,
        quantization=written.quantization,
        size_bytes=written.path.stat().st_size,
        sha256=sha256_of(written.path),
        task=task.name,
        labels=task.labels,
        input=task.input,
        weights_sha256=subject.weights_sha256,
        reference_sha256=sha256_of(written.path.with_name(FILE)),
        parity=parity,
        latency=measure_latency(predict, task.input, subject.reference, stage.latency_runs),
        max_accuracy_drop=stage.max_accuracy_drop,
        passed=parity.accuracy_drop <= stage.max_accuracy_drop,
    )


def _gate(artefacts: list[Artefact]) -> None:
    for artefact in artefacts:
        if not artefact.passed:
            parity = artefact.parity
            raise ExportError(
                f"{artefact.file}: accuracy fell from {parity.accuracy_torch:.4f} to "
                f"{parity.accuracy:.4f}, more than max_accuracy_drop "
                f"{artefact.max_accuracy_drop:g}; the files are kept for inspection"
            )
