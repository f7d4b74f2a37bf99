"""The objectives by the name that a config gives them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from shared_models.errors import InputError
from shared_models.objectives import Ground, Objective
from shared_models.objectives.adversarial import Attack, adversarial
from shared_models.objectives.denoising import denoising
from shared_models.objectives.ditto import ditto
from shared_models.objectives.fedema import fedema
from shared_models.objectives.fednova import fednova
from shared_models.objectives.fedprox import fedprox
from shared_models.objectives.forecasting import forecasting
from shared_models.objectives.masked import masked
from shared_models.objectives.quantized import quantize_aware
from shared_models.objectives.scaffold import scaffold
from shared_models.objectives.simclr import simclr
from shared_models.objectives.simsiam import simsiam
from shared_models.objectives.supervised import supervised
from shared_models.quantization import Grid

if TYPE_CHECKING:
    from shared_models.config import TrainStage
    from shared_models.task import Task

MakeObjective: TypeAlias = Callable[[Ground], Objective]


def objective_of(stage: TrainStage, task: Task) -> MakeObjective:
    """Returns how a stage's objective is made.

    Raises `InputError` where the stage asks for another objective than the task's own.
    """
    if stage.kind == "pretrain":
        tau = stage.mixing_scale
        return task.objective if tau is None else functools.partial(fedema, tau=tau)
    if stage.objective != "fedavg" and not stage.student and task.objective is not supervised:
        raise InputError(
            f"stages.{stage.name}.objective: {stage.objective!r} cannot be: task {task.name!r} has "
            "an objective of its own; leave it at 'fedavg'"
        )
    made: dict[str, MakeObjective] = {
        "fedavg": task.objective,
        "fedprox": functools.partial(fedprox, mu=stage.proximal_mu or 0.0),
        "scaffold": scaffold,
        "fednova": functools.partial(fednova, momentum=stage.local_momentum or 0.0),
        "adversarial": functools.partial(adversarial, attack=_attack_of(stage)),
        "ditto": functools.partial(ditto, strength=stage.personal_lambda or 0.0),
    }
    make = made[stage.objective]
    if not stage.quantize_aware:
        return make
    return functools.partial(quantize_aware, make=make, grid=grid_of(stage))


def pretext_of(stage: TrainStage, task: Task) -> Task:
    """Returns what a stage of kind `pretrain` makes of a task: its encoder, and no labels.

    Raises `InputError` when the objective is for other models or input than the task's.
    """
    made: dict[str, Callable[[], Task]] = {
        "simclr": lambda: simclr(task, stage.contrast_temperature or 1.0),
        "simsiam": lambda: simsiam(task),
        "denoising_autoencoder": lambda: denoising(task, stage.corrupted_fraction or 0.0),
        "masked_reconstruction": lambda: masked(task, stage.masked_fraction or 0.0),
        "forecasting": lambda: forecasting(task, stage.forecast_steps or 1),
    }
    return made[stage.objective]()


def _attack_of(stage: TrainStage) -> Attack:
    return Attack(stage.adversarial_epsilon or 0.0, stage.adversarial_steps or 1)


def grid_of(stage: TrainStage) -> Grid:
    """Returns how finely a stage that is aware of quantization rounds."""
    scales = stage.weight_scales or "exported"
    return Grid(stage.weight_bits or 8, stage.activation_bits or 8, scales)
