"""Distillation: a small model learns what a large one says, of data that never leaves a client.

Hinton et al., "Distilling the knowledge in a neural network", 2015 (arXiv 1503.02531), section 2:

    loss = alpha T^2 KL(softmax(teacher / T) | softmax(student / T)) + (1 - alpha) task loss

T^2 because slopes of the soft part shrink by it; KL has the slopes of the paper's cross entropy.
The teacher's weights are the server's, sent beside the student's, and change in no round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import kl_div, log_softmax

from shared_models.arrays import Arrays
from shared_models.models.scanned import ScannedLstm, ScannedRnn, scanned
from shared_models.objectives import (
    Batch,
    Broadcast,
    Extras,
    Ground,
    Metrics,
    Noise,
    Objective,
    ServerSide,
    Sums,
)
from shared_models.objectives.local import Local, LocalTraining
from shared_models.partial import ClientState
from shared_models.task import as_labelled

if TYPE_CHECKING:
    from shared_models.task import Task

TEACHER = "teacher"


@dataclass(frozen=True)
class Teaching:
    """Who teaches, and how: `temperature` is the paper's T, `alpha` what the teacher counts."""

    teacher: Task
    temperature: float
    alpha: float


class Taught(NamedTuple):
    """A client in training, and its teacher's arrays."""

    way: Local
    teacher: Arrays


def extras_of(teacher: Arrays) -> Extras:
    """Returns what the server tells of a teacher: its weights and running statistics."""
    # Counters say nothing, and would be averaged like what they are not.
    return {TEACHER: {name: own for name, own in teacher.items() if own.is_floating_point()}}


def distill(ground: Ground, teaching: Teaching) -> Objective:
    """Returns the objective of the task's model as the student of another's."""
    soft = replace(ground.task, loss=_loss(teaching, ground.task), target=as_labelled)
    training = LocalTraining(replace(ground, task=soft))
    teacher = _teacher(teaching.teacher, ground.task)

    def begin(server: Broadcast, state: ClientState, data: Batch) -> Taught:
        return Taught(training.begin(server, state, data), server.extras[TEACHER])

    def step(local: Taught, batch: Batch, noise: Noise) -> tuple[Taught, Metrics]:
        with torch.no_grad():
            said = functional_call(teacher, local.teacher, (batch.x,))
        hard = ground.task.target(batch.x, batch.y)
        targets = Batch(batch.x, (hard, said))  # type: ignore[arg-type]  # for `_loss` alone
        way, metrics = training.step(local.way, targets, noise)
        return local._replace(way=way), metrics

    def end(local: Taught) -> tuple[Sums, ClientState, Metrics]:
        return training.end(local.way)

    def untaught(_: Arrays) -> Extras:
        return extras_of(teaching.teacher.build(0))

    plain = training.objective()
    return replace(plain, begin=begin, step=step, end=end, server=ServerSide(untaught))


def _loss(teaching: Teaching, task: Task) -> Callable[..., Tensor]:
    temperature, alpha = teaching.temperature, teaching.alpha

    def loss(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        y, said = targets
        ours, theirs = (log_softmax(logits / temperature, dim=1) for logits in (outputs, said))
        soft = kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return alpha * temperature**2 * soft + (1 - alpha) * task.loss(outputs, y)

    return loss


def _teacher(teacher: Task, student: Task) -> nn.Module:
    """Returns the teacher in evaluation mode, in the form in which the student is trained."""
    model = teacher.make_model().eval()
    parts = student.make_model().modules()
    mapped = any(isinstance(part, ScannedLstm | ScannedRnn) for part in parts)
    return scanned(model) if mapped else model
