"""The plain loop: one client, one batch after another. Slow, readable, the reference for others."""

from __future__ import annotations

from clients.trainers.one_by_one import one_by_one
from clients.training import (
    BlockTrainer,
    Member,
    Trained,
    Training,
    as_batch,
    batch_indices,
    noise_source,
    order_of,
)
from shared_models.gradients import by_autograd
from shared_models.objectives import Batch, Broadcast, Objective


def loop(training: Training) -> BlockTrainer:
    """Returns the trainer that calls `begin`, `step`, `end` for each client; fits every task."""
    objective = training.objective(by_autograd)

    def train(server: Broadcast, member: Member) -> Trained:
        return train_client(training, objective, server, member)

    return one_by_one(training, objective, train)


def train_client(
    training: Training, objective: Objective, server: Broadcast, member: Member
) -> Trained:
    """Runs one client's local epochs; its metrics are means over examples."""
    examples = len(member.data.y)
    draw = noise_source(training, objective, member.key)
    everything = as_batch(member.data, training)
    local = objective.begin(server, member.state, everything)
    totals: dict[str, float] = {}
    order = order_of(training, member.key)
    for index in batch_indices(examples, training.epochs, training.batch_size, order):
        batch = Batch(everything.x[index], everything.y[index])
        local, metrics = objective.step(local, batch, draw(batch))
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(index)
    sums, state, told = objective.end(local)
    means = {name: total / (training.epochs * examples) for name, total in totals.items()}
    return Trained(sums, {**means, **{name: float(value) for name, value in told.items()}}, state)
