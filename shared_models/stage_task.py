"""What a stage trains: a run's task, as the stages before it have pruned or distilled its model.

A stage without labels trains the encoder of that, with other parts after it.

A function of the config alone: clients, the server and the exporter each compute it.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from shared_models.config import Config, PruneStage, TrainStage
from shared_models.errors import InputError
from shared_models.objectives.choice import pretext_of
from shared_models.objectives.distill import Teaching, distill
from shared_models.pruning import Cut, narrowed
from shared_models.task import Task, as_given
from shared_models.tasks import load_task


def stage_task(config: Config, stage_name: str) -> Task:
    """Returns the task of a stage by its name; of a stage that prunes, what it leaves.

    Raises `InputError` for a student whose input or labels are not its teacher's.
    """
    task = load_task(config.task)
    for stage in config.stages:
        if isinstance(stage, PruneStage):
            task = replace(task, make_model=narrowed(task.make_model, cut_of(stage)))
        elif isinstance(stage, TrainStage) and stage.student is not None:
            teacher, task = task, _student(stage, task)
            if stage.name == stage_name:
                return _taught(stage, task, teacher)
        if stage.name == stage_name:
            if isinstance(stage, TrainStage) and stage.kind == "pretrain":
                return _pretext(stage, task)
            break
    return task


def task_before(config: Config, stage_name: str) -> Task:
    """Returns the task of the stage before, the run's own before the first: who teaches a student.

    With `init` that is the task whose weights the run begins with.
    """
    names = [stage.name for stage in config.stages]
    place = names.index(stage_name)
    return stage_task(config, names[place - 1]) if place else load_task(config.task)


def final_task(config: Config) -> Task:
    """Returns the task whose model a run ends with."""
    return stage_task(config, config.stages[-1].name)


def reads_labels(config: Config, stage: TrainStage) -> bool:
    """Whether clients train in a stage on their labelled examples alone.

    They do not where answers are compared with the input, as an autoencoder's are.
    """
    return stage.kind != "pretrain" and stage_task(config, stage.name).target is not as_given


def check_calibration(config: Config) -> None:
    """Raises `InputError` where clients would calibrate what takes none of their data."""
    stage, task = config.calibrate_stage, final_task(config)
    if stage is not None and task.deployed is not None:
        raise InputError(
            f"stages.{stage.name}: of {task.name!r} only {task.deployed.part!r} is exported, whose "
            "input is drawn: clients have no data for it; remove this stage"
        )


def cut_of(stage: PruneStage) -> Cut:
    """Returns how much a stage lets stay."""
    return Cut(stage.keep, stage.prefixes)


def _pretext(stage: TrainStage, task: Task) -> Task:
    try:
        return pretext_of(stage, task)
    except InputError as error:
        raise InputError(f"stages.{stage.name}: {error}") from None


def _student(stage: TrainStage, teacher: Task) -> Task:
    student = load_task(stage.student or "")
    if teacher.answer != "classes":
        raise InputError(
            f"stages.{stage.name}.student: what {teacher.name!r} says are {teacher.answer}, "
            "of which no student learns: only of classes"
        )
    for what in ("input", "labels", "answer"):
        if getattr(student, what) != getattr(teacher, what):
            raise InputError(
                f"stages.{stage.name}.student: {student.name!r} has another {what} "
                f"than {teacher.name!r}, which is to teach it"
            )
    return student


def _taught(stage: TrainStage, student: Task, teacher: Task) -> Task:
    teaching = Teaching(teacher, stage.temperature or 1.0, stage.alpha or 0.0)
    return replace(student, objective=functools.partial(distill, teaching=teaching))
