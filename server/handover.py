"""What a stage begins with: the weights of the stage before, or new ones where it says so."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from shared_models.arrays import Arrays, in_dtype, require_prefixes
from shared_models.config import Config, PruneStage, TrainStage
from shared_models.objectives import Extras
from shared_models.objectives.distill import extras_of
from shared_models.pruning import pruned
from shared_models.randomness import generator
from shared_models.stage_task import cut_of, stage_task
from shared_models.task import Task


class Beginning(NamedTuple):
    """A stage's first weights, and what the server tells clients besides them."""

    params: Arrays
    extras: Extras


def begun(config: Config, stage: TrainStage, before: Arrays) -> Beginning:
    """Returns what a stage begins with, from the weights that the learning stage before ended with.

    A function of these, of the config and of its seed: a run that is resumed gets the same.
    """
    for previous, own in itertools.pairwise(config.stages[: config.stages.index(stage)]):
        if isinstance(own, PruneStage) and _is_between(config, own, stage):
            whole = stage_task(config, previous.name)
            before = pruned(whole.make_model, cut_of(own), before)
    task = stage_task(config, stage.name)
    if stage.student is None:
        return Beginning(handed_over(stage, task, before, config.seed), {})
    dtype = next(own.dtype for own in before.values() if own.is_floating_point())
    return Beginning(in_dtype(_new(stage, task, config.seed), dtype), extras_of(before))


def _is_between(config: Config, cut: PruneStage, stage: TrainStage) -> bool:
    """Whether nothing learns after the cut and before the stage."""
    between = config.stages[config.stages.index(cut) : config.stages.index(stage)]
    return not any(isinstance(own, TrainStage) for own in between)


def handed_over(stage: TrainStage, task: Task, before: Arrays, seed: int) -> Arrays:
    """Returns the arrays that a stage begins with.

    Those that begin with a prefix in `resets`, and with `takes` all others than those, are
    initialised anew, in a way that depends on the seed and the stage's name alone. `before` are the
    arrays of the stage before. Raises `InputError` when a prefix is nobody's.
    """
    require_prefixes("takes", stage.takes, before)
    require_prefixes("resets", stage.resets, before)
    taken = tuple(stage.takes) or ("",)
    new = _new(stage, task, seed)
    return {
        name: tensor
        if name.startswith(taken) and not name.startswith(tuple(stage.resets))
        else new[name].to(tensor.dtype)
        for name, tensor in before.items()
    }


def _new(stage: TrainStage, task: Task, seed: int) -> Arrays:
    return task.build(int(generator(seed, stage.name, "handover").integers(2**63)))
