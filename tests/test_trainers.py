"""Every trainer means the same as the plain loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.trainers import TRAINERS
from clients.training import ClientData, Training, Unfit
from shared_models.arrays import Arrays, roles_of
from shared_models.messages import BlockRequest
from shared_models.optimizers import Optimizer, sgd
from shared_models.partial import Partial
from shared_models.task import Task
from shared_models.tasks import TASKS, load_task

SIZES = (7, 4, 9, 4, 1)  # unequal, with last batches of 1, 2 and 3


def training_of(task: Task, optimizer: Optimizer | None = None, **changes: object) -> Training:
    made = Training(
        task=task,
        optimizer=optimizer or sgd(0.1),
        roles=roles_of(task.model()),
        seed=0,
        epochs=2,
        batch_size=3,
        max_update_norm=1000.0,
        dtype=torch.float64,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def data_for(task: Task) -> Callable[[int], ClientData]:
    def data_of(client_id: int) -> ClientData:
        rng, n = np.random.default_rng(client_id), SIZES[client_id]
        shape = (n, *task.input.shape)
        tokens = rng.integers(task.input.tokens, size=shape) if task.input.tokens else None
        x = rng.random(shape).astype(np.float32) if tokens is None else tokens
        return ClientData(x, rng.integers(len(task.labels), size=n))

    return data_of


def request_for(task: Task, params: Arrays | None = None) -> BlockRequest:
    ids = tuple(range(len(SIZES)))
    return BlockRequest("train", 1, 0, 0, ids, params or task.build(0))


def partial_of(name: str, training: Training) -> Partial:
    task = training.task
    return TRAINERS[name](training)(request_for(task), data_for(task))


def fits(name: str, training: Training) -> bool:
    try:
        TRAINERS[name](training)
    except Unfit:
        return False
    return True


FAST = [name for name in TRAINERS if name != "loop"]


@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("name", FAST)
def test_a_trainer_equals_the_plain_loop(name: str, task_name: str) -> None:
    training = training_of(load_task(task_name))
    if not fits(name, training):
        assert name == "low_rank"
        assert task_name != "mnist-2nn"
        return
    ours, theirs = partial_of(name, training), partial_of("loop", training)
    for key, part in theirs.sums.items():
        assert ours.sums[key].weight == part.weight
        torch.testing.assert_close(ours.sums[key].arrays, part.arrays, rtol=1e-9, atol=1e-12)
    for mine, yours in zip(ours.rows, theirs.rows, strict=True):
        assert mine.metrics["loss"] == pytest.approx(yours.metrics["loss"], rel=1e-9)
        assert replace(mine, metrics={}) == replace(yours, metrics={})
