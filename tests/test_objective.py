"""Local training: equal to torch's own optimiser, mappable, with statistics kept apart."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from shared_models.arrays import Arrays, roles_of, subtract
from shared_models.gradients import Gradient, by_autograd, by_transform
from shared_models.objectives import Batch, Broadcast, Ground, Objective
from shared_models.optimizers import Optimizer
from shared_models.optimizers.clip import clip_by_norm
from shared_models.optimizers.momentum import momentum
from shared_models.optimizers.sgd import sgd
from shared_models.task import Task
from shared_models.tasks import TASKS, load_task
from tests.plain_twin import train_locally


def some_batches(task: Task, count: int = 3) -> list[Batch]:
    source = torch.Generator().manual_seed(0)
    x = torch.from_numpy(task.sample(4))

    def batch() -> Batch:
        noise = torch.rand(x.shape, generator=source, dtype=torch.float64)
        values = noise if x.is_floating_point() else (noise * 70).long()
        return Batch(values, torch.randint(len(task.labels), (4,), generator=source))

    return [batch() for _ in range(count)]


def doubled(arrays: Arrays) -> Arrays:
    return {name: t.double() if t.is_floating_point() else t for name, t in arrays.items()}


def ground(task: Task, optimizer: Optimizer, gradient: Gradient) -> Ground:
    return Ground(task, optimizer, gradient, roles_of(task.model()))


def run(objective: Objective, server: Arrays, batches: list[Batch]) -> dict[str, Arrays]:
    local = objective.begin(Broadcast(server, {}), {}, batches[0])
    for batch in batches:
        local, _ = objective.step(local, batch, {})
    return objective.end(local)[0]


CLASSIFIERS = [name for name in TASKS if load_task(name).answer == "classes"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_local_training_equals_torchs_sgd(name: str) -> None:
    task = load_task(name)
    model, batches = task.model(0).double(), some_batches(task)
    server = doubled(task.build(0))
    ours = run(task.objective(ground(task, sgd(0.1), by_autograd)), server, batches)["delta"]
    theirs = subtract(train_locally(task, model, batches, 0.1).state_dict(), server)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_both_ways_to_a_gradient_agree(name: str) -> None:
    task = load_task(name)
    server, batches = doubled(task.build(0)), some_batches(task, 2)
    one, other = (
        run(task.objective(ground(task, sgd(0.1), gradient)), server, batches)
        for gradient in (by_autograd, by_transform)
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_step_can_be_mapped_over_clients() -> None:
    task = load_task("mnist-2nn")
    objective = task.objective(ground(task, clip_by_norm(1.0, momentum(0.1, 0.9)), by_transform))
    server = doubled(task.build(0))
    batches = some_batches(task, 2)
    stacked = Batch(*(torch.stack(parts) for parts in zip(*batches, strict=True)))
    start = objective.begin(Broadcast(server, {}), {}, batches[0])
    mapped, _ = torch.func.vmap(objective.step, in_dims=(None, 0, None))(start, stacked, {})
    for place, batch in enumerate(batches):
        alone, _ = objective.step(start, batch, {})
        torch.testing.assert_close(mapped.params["head.weight"][place], alone.params["head.weight"])


class Normed(nn.Module):
    """A model with running statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            OrderedDict(flat=nn.Flatten(), dense=nn.Linear(64, 8), norm=nn.BatchNorm1d(8))
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits


@pytest.mark.parametrize("gradient", [by_autograd, by_transform])
def test_running_statistics_go_up_apart_and_counters_stay(gradient: Gradient) -> None:
    task = replace(load_task("digits-cnn"), make_model=Normed)
    server, batches = doubled(task.build(0)), some_batches(task)
    sums = run(task.objective(ground(task, sgd(0.1), gradient)), server, batches)
    assert set(sums["stats"]) == {"encoder.norm.running_mean", "encoder.norm.running_var"}
    assert not any("norm.running" in name or "tracked" in name for name in sums["delta"])
    twin = train_locally(task, task.model(0).double(), batches, 0.1).state_dict()
    for name, value in sums["stats"].items():
        torch.testing.assert_close(value, twin[name])
    assert float(server["encoder.norm.running_mean"].abs().sum()) == 0, "the server's own changed"
