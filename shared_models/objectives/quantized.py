"""Quantization-aware training: any objective, on a model that computes as its file will.

Jacob et al. 2018 (arXiv 1712.05877), section 3; shared_models/quantization.py has the arithmetic.
Weights stay floats: clients step them, and the server averages them, as the objective says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shared_models.objectives import Ground, Objective
from shared_models.quantization import Grid, rounding

if TYPE_CHECKING:
    from shared_models.objectives.choice import MakeObjective


def quantize_aware(ground: Ground, make: MakeObjective, grid: Grid) -> Objective:
    """Returns what `make` makes on a task whose model is rounded to the grid in training."""
    plain = ground.task.make_model
    task = replace(ground.task, make_model=lambda: rounding(plain(), grid))
    # A trainer that takes the steps in another way would take them on weights that are not rounded.
    return replace(make(replace(ground, task=task)), descent=None)
