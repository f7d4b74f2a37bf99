"""The model measured by clients, each on its own examples: what a mean over all would hide."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from clients.training import (
    ClientData,
    DataOf,
    Training,
    broadcast_of,
    member_of,
    row_of,
)
from shared_models.arrays import Arrays
from shared_models.checks import check_metrics
from shared_models.gradients import by_autograd
from shared_models.measures import added_by, combined
from shared_models.messages import BlockRequest
from shared_models.objectives import Batch, Broadcast
from shared_models.objectives.pretext import shown
from shared_models.partial import Partial, Row
from shared_models.task import Task

BlockEvaluator = Callable[[BlockRequest, DataOf], Partial]


def block_evaluator(training: Training, batch_size: int) -> BlockEvaluator:
    """Returns what measures a block's clients: a partial without sums, a row per client.

    Each uses the model that is its own, where the objective gives it one.

    Clients whose examples cannot be read, or whose metrics are not finite, are named in their row.
    """
    task, dtype, device = training.task, training.dtype, training.device
    model = task.model().eval().to(device, dtype)
    objective = training.objective(by_autograd)

    @torch.inference_mode()
    def measure(params: Arrays, data: ClientData) -> dict[str, float]:
        added, sizes = [], []
        for x, y in _batches(task, data, batch_size):
            inputs = x.to(device, dtype if x.is_floating_point() else None)
            outputs = task.apply(model, params, inputs)
            added.append(added_by(task, outputs, Batch(inputs, y.to(device))))
            sizes.append(len(y))
        return combined(task, added, sizes)

    def measure_client(
        request: BlockRequest, server: Broadcast, client_id: int, data_of: DataOf
    ) -> Row:
        def work(data: ClientData) -> Row:
            member = member_of(request, objective, server, client_id, data)
            metrics = measure(objective.own_model(server.params, member.state), data)
            check_metrics(metrics)
            return Row(client_id, len(data.y), metrics)

        return row_of(client_id, data_of, work)

    def evaluate_block(request: BlockRequest, data_of: DataOf) -> Partial:
        server = broadcast_of(request, training)
        rows = (measure_client(request, server, k, data_of) for k in request.client_ids)
        return Partial({}, tuple(rows), about=request.about)

    return evaluate_block


def _batches(task: Task, data: ClientData, size: int) -> Iterator[Batch]:
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    pairs = zip(torch.split(x, size), torch.split(y, size), strict=True)
    return (shown(task, Batch(*pair), number) for number, pair in enumerate(pairs))
