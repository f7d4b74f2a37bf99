"""What a stage begins with: the weights of the stage before, or new ones where it says so."""

from __future__ import annotations

from shared_models.arrays import Arrays, require_prefixes
from shared_models.config import TrainStage
from shared_models.randomness import generator
from shared_models.task import Task


def handed_over(stage: TrainStage, task: Task, before: Arrays, seed: int) -> Arrays:
    """Returns the arrays that a stage begins with.

    Those that begin with a prefix in `resets`, and with `takes` all others than those, are
    initialised anew, in a way that depends on the seed and the stage's name alone. `before` are the
    arrays of the stage before. Raises `InputError` when a prefix is nobody's.
    """
    require_prefixes("takes", stage.takes, before)
    require_prefixes("resets", stage.resets, before)
    taken = tuple(stage.takes) or ("",)
    new = task.build(int(generator(seed, stage.name, "handover").integers(2**63)))
    return {
        name: tensor
        if name.startswith(taken) and not name.startswith(tuple(stage.resets))
        else new[name].to(tensor.dtype)
        for name, tensor in before.items()
    }
