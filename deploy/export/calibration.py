"""Where the ranges of full int8 come from: what clients told, or training examples here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.export.formats.matching import probes
from server.run_folder import RunFolder
from shared_models.config import ExportStage
from shared_models.datasets.load import load_task_data
from shared_models.errors import ExportError
from shared_models.randomness import generator
from shared_models.ranges import Range, Ranges
from shared_models.task import Task


@dataclass(frozen=True)
class Calibration:
    """Model input `(n, *shape)` that sets ranges, or the ranges themselves; `text` says whose.

    With `ranges` the examples are random: no training data is read.
    """

    examples: NDArray[Any]
    text: str
    ranges: Ranges | None = None


def calibration_of(
    folder: RunFolder, stage: ExportStage, task: Task, weights_sha256: str
) -> Calibration:
    """Returns what a run's calibrate stage left; without one, training examples, never test data.

    A part whose input is drawn needs no data for it.

    Raises `ExportError` when that stage has not finished, or its file is damaged or of another
    model.
    """
    config = folder.config()
    if task.deployed is not None:
        rng = generator(config.seed, stage.name, "calibration")
        drawn = task.deployed.draw(rng, stage.calibration_examples)
        return Calibration(task.deployed.input.prepare(drawn), f"drawn, {len(drawn)} examples")
    if config.calibrate_stage is not None:
        return _federated(folder, task, weights_sha256)
    train = load_task_data(task, config.data.name, config.data.root).train
    count = min(stage.calibration_examples, len(train))
    rng = generator(config.seed, stage.name, "calibration")
    chosen = np.sort(rng.choice(len(train), count, replace=False))
    return Calibration(task.input.prepare(train.x[chosen]), f"central, {count} examples")


def _federated(folder: RunFolder, task: Task, weights_sha256: str) -> Calibration:
    path = folder.calibration_file
    again = f"`wildflower simulate {folder.path} --resume` has it made"
    if not path.is_file():
        raise ExportError(f"{path}: is not there yet; {again}")
    try:
        told = json.loads(path.read_text())
        ranges = {str(name): _range(ends) for name, ends in told["ranges"].items()}
        about, text = str(told["weights_sha256"]), str(told["text"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path}: damaged: {error}; remove it, then {again}") from None
    if about != weights_sha256:
        raise ExportError(f"{path}: is about other weights than {folder.model_file.name}; {again}")
    return Calibration(probes(task.input), text, ranges)


def _range(ends: Any) -> Range:
    low, high = map(float, ends)
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"{ends} is no range")
    return Range(low, high)
