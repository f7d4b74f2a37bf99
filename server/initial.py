"""The weights that a run begins with: another run's, where `init` names one."""

from __future__ import annotations

from pathlib import Path

import torch

from shared_models.arrays import Arrays, in_dtype, load_arrays
from shared_models.config import Config, TrainStage
from shared_models.errors import CheckpointError, InputError
from shared_models.files import sha256_of
from shared_models.init_weights import init_file
from shared_models.stage_task import stage_task, task_before


def initial(config: Config) -> Arrays:
    """Returns all arrays of the first stage, in the plan's dtype; none where `init` names nothing.

    Of a stage that distills these are its teacher's.

    What the stage resets, or does not take, is in it with weights of no meaning. Raises
    `InputError` when the file is not here, is not the one that the run began with, or does not fit.
    """
    if config.init is None:
        return {}
    path = init_file(config.init)
    if config.init_sha256 not in (None, found := sha256_of(path)):
        raise InputError(
            f"init: {path} is not what the run began with: sha256 is {found[:12]}…, expected "
            f"{str(config.init_sha256)[:12]}…; put it back, or start a new run"
        )
    try:
        arrays = load_arrays(path)
    except CheckpointError as error:
        raise InputError(f"init: {error}") from None
    stage = config.learning_stages[0]
    task = task_before if stage.student else stage_task
    own = task(config, stage.name).build(config.seed)
    taken = {name: _fitting(path, arrays, name, own) for name in own if is_taken(stage, name)}
    return in_dtype({**own, **taken}, getattr(torch, config.plan.dtype))


def is_taken(stage: TrainStage, name: str) -> bool:
    """Whether a stage takes over an array of this name, where one before it has it."""
    taken = tuple(stage.takes) or ("",)
    return name.startswith(taken) and not name.startswith(tuple(stage.resets))


def _fitting(path: Path, arrays: Arrays, name: str, own: Arrays) -> torch.Tensor:
    found, shape = arrays.get(name), tuple(own[name].shape)
    part = name.partition(".")[0]
    if found is None or tuple(found.shape) != shape:
        told = "is missing" if found is None else f"has shape {tuple(found.shape)}"
        raise InputError(
            f"init: {path}: {name} has to have shape {shape}, there it {told}; "
            f'with resets = ["{part}."] that part begins anew'
        )
    if not torch.isfinite(found).all():
        raise InputError(f"init: {path}: {name} holds NaN or infinite values: choose another file")
    return found
