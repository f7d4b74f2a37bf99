"""The objectives by the name that a config gives them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from shared_models.objectives import Ground, Objective
from shared_models.objectives.adversarial import Attack, adversarial
from shared_models.objectives.ditto import ditto
from shared_models.objectives.fednova import fednova
from shared_models.objectives.fedprox import fedprox
from shared_models.objectives.quantized import quantize_aware
from shared_models.objectives.scaffold import scaffold
from shared_models.quantization import Grid

if TYPE_CHECKING:
    from shared_models.config import TrainStage
    from shared_models.task import Task

MakeObjective: TypeAlias = Callable[[Ground], Objective]


def objective_of(stage: TrainStage, task: Task) -> MakeObjective:
    """Returns how a stage's objective is made."""
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


def _attack_of(stage: TrainStage) -> Attack:
    return Attack(stage.adversarial_epsilon or 0.0, stage.adversarial_steps or 1)


def grid_of(stage: TrainStage) -> Grid:
    """Returns how finely a stage that is aware of quantization rounds."""
    scales = stage.weight_scales or "exported"
    return Grid(stage.weight_bits or 8, stage.activation_bits or 8, scales)
