"""The objectives by the name that a config gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from shared_models.objectives import Ground, Objective

if TYPE_CHECKING:
    from shared_models.config import TrainStage
    from shared_models.task import Task

MakeObjective: TypeAlias = Callable[[Ground], Objective]


def objective_of(stage: TrainStage, task: Task) -> MakeObjective:
    """Returns how a stage's objective is made."""
    return {"fedavg": task.objective}[stage.objective]
