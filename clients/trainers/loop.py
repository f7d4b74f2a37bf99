"""The plain loop: one client, one batch after another. Slow, readable, the reference for others."""

from __future__ import annotations

from clients.trainers.one_by_one import one_by_one
from clients.training import (
    BlockTrainer,
    ClientData,
    Key,
    Training,
    as_batch,
    batch_indices,
    noise_source,
    order_of,
)
from shared_models.arrays import Arrays
from shared_models.gradients import by_autograd
from shared_models.objectives import Batch, Objective, Sums


def loop(training: Training) -> BlockTrainer:
    """Returns the trainer that calls `begin`, `step`, `end` for each client; fits every task."""
    objective = training.objective(by_autograd)

    def train(server: Arrays, key: Key, data: ClientData) -> tuple[Sums, dict[str, float]]:
        return train_client(training, objective, server, key, data)

    return one_by_one(training, objective, train)


def train_client(
    training: Training, objective: Objective, server: Arrays, key: Key, data: ClientData
) -> tuple[Sums, dict[str, float]]:
    """Runs one client's local epochs; returns its sums and each metric's mean over examples."""
    draw = noise_source(training, objective, key)
    everything = as_batch(data, training)
    local = objective.begin(server, {}, everything)
    totals: dict[str, float] = {}
    order = order_of(training, key)
    for index in batch_indices(len(data.y), training.epochs, training.batch_size, order):
        batch = Batch(everything.x[index], everything.y[index])
        local, metrics = objective.step(local, batch, draw(batch))
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(index)
    update, _, told = objective.end(local)
    means = {name: total / (training.epochs * len(data.y)) for name, total in totals.items()}
    return update, {**means, **{name: float(value) for name, value in told.items()}}
