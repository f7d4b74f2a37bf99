"""The bare loop: two processes of one thread, a persistent module, no framework at all.

Run by `benchmarks.simulation` as `python -m benchmarks.floor FOLDER`. It is what a careful person
writes in an afternoon, and what a framework's overhead is measured against.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.job import (
    Job,
    Told,
    first_client_trained,
    make_model,
    read_clients,
    read_job,
    tell,
    versions_of,
)


@dataclass(frozen=True)
class Worker:
    """A process: where to send client ids to, and the shared memory that it sums into."""

    pipe: Connection
    total: list[Tensor]


def train(
    folder: Path, job: Job, shared: tuple[list[Tensor], list[Tensor]], pipe: Connection
) -> None:
    """Serves a worker: sums `examples * weights` over every list of clients that comes in."""
    torch.set_num_threads(1)
    start, total = shared
    data, model = read_clients(folder, job), make_model(folder, job)
    weights: list[Tensor] = list(model.parameters())
    while (ids := pipe.recv()) is not None:
        torch._foreach_zero_(total)
        for client in ids:
            x, y = data[client]
            with torch.no_grad():
                torch._foreach_copy_(weights, start)
            for i in range(0, len(y), job.batch_size):
                loss = cross_entropy(model(x[i : i + job.batch_size]), y[i : i + job.batch_size])
                gradients = torch.autograd.grad(loss, weights)
                with torch.no_grad():
                    torch._foreach_add_(weights, gradients, alpha=-job.learning_rate)
            with torch.no_grad():
                torch._foreach_add_(total, weights, alpha=float(len(y)))
            first_client_trained(folder)
        pipe.send(sum(len(data[client][1]) for client in ids))


def run_round(start: list[Tensor], crew: Sequence[Worker], cohort: Sequence[int]) -> None:
    """Deals a cohort out to the workers and writes the mean of their weights into `start`."""
    for place, worker in enumerate(crew):
        worker.pipe.send(cohort[place :: len(crew)])
    examples = sum(worker.pipe.recv() for worker in crew)
    torch._foreach_copy_(start, crew[0].total)
    for worker in crew[1:]:
        torch._foreach_add_(start, worker.total)
    torch._foreach_div_(start, float(examples))


def main(folder: Path) -> None:
    """Runs the job in `folder`."""
    torch.set_num_threads(1)
    job = read_job(folder)
    model = make_model(folder, job)
    start = [_shared(weight.detach().clone()) for weight in model.parameters()]
    crew = [_start(folder, job, start) for _ in range(job.workers)]
    ends = []
    for cohort in job.cohorts:
        run_round(start, crew, cohort)
        ends.append(time.time())
    for worker in crew:
        worker.pipe.send(None)
    names = [name for name, _ in model.named_parameters()]
    settings = {"processes": job.workers, "threads": 1, "layout": "NCHW"}
    told = Told(tuple(ends), versions_of(["torch", "numpy"]), settings)
    tell(folder, told, dict(zip(names, start, strict=True)))


def _shared(tensor: Tensor) -> Tensor:
    tensor.share_memory_()  # type: ignore[no-untyped-call]
    return tensor


def _start(folder: Path, job: Job, start: list[Tensor]) -> Worker:
    context = multiprocessing.get_context("fork")
    total = [_shared(torch.zeros_like(weight)) for weight in start]
    here, there = context.Pipe()
    arguments = (folder, job, (start, total), there)
    context.Process(target=train, args=arguments, daemon=True).start()
    return Worker(here, total)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
