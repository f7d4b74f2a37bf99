"""What a stage begins with: the weights of the stages before, or new ones where it says so.

Arrays are known by their names. What a stage does not have, as one without labels has no `head.`,
is remembered from the newest stage that had it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch

from server.initial import initial, is_taken
from shared_models.arrays import Arrays, in_dtype, require_prefixes
from shared_models.config import Config, PruneStage, TrainStage
from shared_models.errors import InputError
from shared_models.objectives import Extras
from shared_models.objectives.distill import extras_of
from shared_models.pruning import pruned
from shared_models.randomness import generator
from shared_models.stage_task import cut_of, stage_task, task_before
from shared_models.task import Task

Made: TypeAlias = Callable[[TrainStage], Arrays]
"""What a learning stage that is over has ended with."""


class Beginning(NamedTuple):
    """A stage's first weights, and what the server tells clients besides them."""

    params: Arrays
    extras: Extras


def begun(config: Config, stage: TrainStage, made: Made) -> Beginning:
    """Returns what a stage begins with, from what the learning stages before it have made.

    A function of these, of the config and of its seed: a run that is resumed gets the same.
    """
    dtype = getattr(torch, config.plan.dtype)
    task, before = stage_task(config, stage.name), remembered(config, stage, made)
    if not before:
        return Beginning(in_dtype(task.build(config.seed), dtype), {})
    if stage.student is None:
        return Beginning(handed_over(stage, task, before, config.seed), {})
    teacher = task_before(config, stage.name).build(0)
    extras = extras_of({name: before[name] for name in teacher})
    return Beginning(in_dtype(_new(stage, task, config.seed), dtype), extras)


def handover_notes(config: Config) -> tuple[str, ...]:
    """Returns what somebody may not have meant in what stages take over, reset and freeze.

    Raises `InputError`, before anything is trained, where their prefixes are no array's, or nothing
    is taken over.
    """

    def untrained(own: TrainStage) -> Arrays:
        return stage_task(config, own.name).build(config.seed)

    notes: list[str] = []
    for stage in config.learning_stages:
        new, before = untrained(stage), remembered(config, stage, untrained)
        require_prefixes(f"stages.{stage.name}.freezes", stage.freezes, new)
        if before and stage.student is None:
            handed_over(stage, stage_task(config, stage.name), before, config.seed)
            notes += _notes(stage, [name for name in new if name in before])
    return tuple(notes)


def _notes(stage: TrainStage, known: Sequence[str]) -> list[str]:
    """Returns what a stage freezes that no stage has learnt; `known` is what one before it had."""
    taken = [name for name in known if is_taken(stage, name)]
    return [
        f"stage {stage.name!r} freezes {prefix!r} as random as it begins: no stage before has "
        "left it, or it is not taken over"
        for prefix in stage.freezes
        if not any(name.startswith(prefix) for name in taken)
    ]


def remembered(config: Config, stage: TrainStage, made: Made) -> Arrays:
    """Returns all arrays that the stages before have left, each from the newest that had it."""
    arrays = initial(config)
    for place, own in enumerate(config.stages[: config.stages.index(stage)]):
        if isinstance(own, PruneStage):
            whole = stage_task(config, config.stages[place - 1].name)
            kept = {name: arrays[name] for name in whole.build(0)}  # others would fit no more
            arrays = pruned(whole.make_model, cut_of(own), kept)
        elif isinstance(own, TrainStage):
            # A student's arrays are called like its teacher's.
            arrays = {**({} if own.student else arrays), **made(own)}
    return arrays


def handed_over(stage: TrainStage, task: Task, before: Arrays, seed: int) -> Arrays:
    """Returns the arrays that a stage begins with.

    Those that begin with a prefix in `resets`, with `takes` all others than those, and those that
    are not among the arrays `before`, are initialised anew, in a way that depends on the seed and
    the stage's name alone. Raises `InputError` when a prefix is nobody's, or `takes` takes nothing.
    """
    new = _new(stage, task, seed)
    both = {name: own for name, own in new.items() if name in before}
    require_prefixes(f"stages.{stage.name}.takes", stage.takes, both)
    require_prefixes(f"stages.{stage.name}.resets", stage.resets, new)
    if stage.takes and not any(is_taken(stage, name) for name in both):
        raise InputError(
            f"stages.{stage.name}.takes: nothing is taken over: resets names all of it"
        )
    dtype = next(own.dtype for own in before.values() if own.is_floating_point())
    return {
        name: before[name] if name in before and is_taken(stage, name) else own
        for name, own in in_dtype(new, dtype).items()
    }


def _new(stage: TrainStage, task: Task, seed: int) -> Arrays:
    return task.build(int(generator(seed, stage.name, "handover").integers(2**63)))
