"""Ways to train a block. The plain loop is the reference; a plan names one of them.

Each module has one public function, `Training -> BlockTrainer`, which raises `Unfit` with the
reason when it cannot train a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from clients.trainers.fused import fused
from clients.trainers.loop import loop
from clients.trainers.low_rank import low_rank
from clients.trainers.reused import reused
from clients.trainers.vectorised import vectorised
from clients.training import BlockTrainer, Training, Unfit
from shared_models.errors import InputError

TRAINERS: Mapping[str, Callable[[Training], BlockTrainer]] = {
    "loop": loop,
    "reused": reused,
    "fused": fused,
    "low_rank": low_rank,
    "vectorised": vectorised,
}


def make_trainer(name: str, training: Training) -> BlockTrainer:
    """Returns a trainer by name; `InputError` when it cannot train the task."""
    try:
        return TRAINERS[name](training)
    except Unfit as error:
        raise InputError(
            f"plan.trainer: {name!r} cannot train {training.task.name!r}: {error}; use 'auto'"
        ) from None
