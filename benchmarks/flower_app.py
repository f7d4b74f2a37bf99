"""A plain Flower app, as its tutorials write it, with the data and the model kept in the actor.

The ClientApp stands in a module of its own: Flower's actors import it by name, so that the cache
below lives as long as the actor does.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.job import (
    Job,
    batches,
    first_client_trained,
    make_model,
    read_clients,
    read_job,
)

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client for one epoch and sends its weights back."""
    folder = Path(str(message.content.config_records["config"]["folder"]))
    job, data, model = _opened(folder)
    x, y = data[int(context.node_config["partition-id"])]
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=job.learning_rate)
    for inputs, labels in batches(x, y, job.batch_size):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    first_client_trained(folder)
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y)}),
        }
    )
    return Message(content, reply_to=message)


@functools.lru_cache(maxsize=1)
def _opened(folder: Path) -> tuple[Job, list[tuple[Tensor, Tensor]], nn.Module]:
    torch.set_num_threads(1)
    job = read_job(folder)
    return job, read_clients(folder, job), make_model(folder, job)
