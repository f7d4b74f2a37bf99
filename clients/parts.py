"""The parts of local training, as a stage's config asks for them."""

from __future__ import annotations

from collections.abc import Callable

from clients.training import Transform
from clients.transforms import clip_update
from shared_models.config import TrainStage
from shared_models.optimizers import Optimizer
from shared_models.optimizers.adam import adam
from shared_models.optimizers.adamw import adamw
from shared_models.optimizers.clip import clip_by_norm
from shared_models.optimizers.momentum import momentum
from shared_models.optimizers.scaled import scaled_by
from shared_models.optimizers.sgd import sgd


def local_optimizer(stage: TrainStage, factor: float = 1.0) -> Optimizer:
    """Returns the optimiser that a stage's clients use, its steps scaled by `factor`."""
    rate = stage.local_learning_rate
    adaptive = (stage.local_beta1 or 0.0, stage.local_beta2 or 0.0, stage.local_epsilon or 0.0)
    made: dict[str, Callable[[], Optimizer]] = {
        "sgd": lambda: sgd(rate),
        "momentum": lambda: momentum(rate, stage.local_momentum or 0.0),
        "adam": lambda: adam(rate, *adaptive),
        "adamw": lambda: adamw(rate, stage.local_weight_decay or 0.0, *adaptive),
    }
    plain = made[stage.local_optimizer]()
    bounded = plain if stage.local_clip_norm is None else clip_by_norm(stage.local_clip_norm, plain)
    return bounded if factor == 1.0 else scaled_by(factor, bounded)


def transforms_of(stage: TrainStage) -> tuple[Transform, ...]:
    """Returns what happens to each update before it is summed."""
    return () if stage.clip_norm is None else (clip_update(stage.clip_norm),)
