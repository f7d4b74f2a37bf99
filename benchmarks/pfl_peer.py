"""pfl-research, in the way its guide for fast simulations says: one process a core, gloo between.

Run by `benchmarks.simulation` as `python -m benchmarks.pfl_peer FOLDER` in an environment of its
own (benchmarks/pfl-requirements.txt). This process is rank 0 and starts the others.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
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

if TYPE_CHECKING:
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data import FederatedDataset
    from pfl.data.dataset import Dataset
    from pfl.metrics import Metrics

_RANK, _ADDRESSES = "PFL_WORKER_RANK", "PFL_WORKER_ADDRESSES"


class WithLoss(nn.Module):
    """A model as pfl wants it: with a loss, and with metrics, which nobody asks for here."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the mean loss of a batch."""
        return cross_entropy(self.model(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, object]:  # noqa: ARG002
        """Returns nothing: pfl evaluates in its first round in any case, this makes it free."""
        return {}


def federated(folder: Path, job: Job) -> FederatedDataset:
    """Returns the population; every process draws the same cohorts and trains its own share.

    The datasets are made once: pfl keeps a dataset's batches in it, and they would be cut anew
    every round if it was made anew.
    """
    from pfl.data import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset

    users = [
        PyTorchTensorDataset(examples, user_id=str(client))
        for client, examples in enumerate(read_clients(folder, job))
    ]
    drawn = itertools.chain.from_iterable(job.cohorts)
    begun = itertools.count()

    def dataset_of(client: int) -> Dataset:
        if next(begun) == 1:  # the second client begins where the first has trained
            first_client_trained(folder)
        return users[client]

    return FederatedDataset(dataset_of, lambda: next(drawn))


def noting(ends: list[float]) -> TrainingProcessCallback:
    """Returns a callback that appends the time at the end of every round."""
    from pfl.callback.base import TrainingProcessCallback
    from pfl.metrics import Metrics

    class Note(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
            ends.append(time.time())
            return False, Metrics()

    return Note()


def run(folder: Path, job: Job) -> tuple[list[float], nn.Module]:
    """Trains all rounds in this process's share; returns when they ended, and the model."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    ends: list[float] = []
    module = WithLoss(make_model(folder, job))
    population = federated(folder, job)
    model = PyTorchModel(
        module, torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0)
    )
    rounds = len(job.cohorts)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,
            train_cohort_size=len(job.cohorts[0]),
            val_cohort_size=0,
        ),
        SimulatedBackend(population, population, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_learning_rate=job.learning_rate,
            local_num_epochs=1,
            local_batch_size=job.batch_size,
        ),
        callbacks=[noting(ends)],
        send_metrics_to_platform=False,
    )
    return ends, module.model


def main(folder: Path) -> None:
    """Runs the job in `folder`: rank 0 starts the other ranks and tells the result."""
    job = read_job(folder)
    leads = _RANK not in os.environ
    others = list(_start_others(job)) if leads else []
    ends, model = run(folder, job)
    if not leads:
        return
    for other in others:
        other.wait()
    settings = {
        "processes": job.workers,
        "threads": 1,
        "backend": "torch.distributed, gloo",
        "data": "PyTorchTensorDataset, made once",
        "metrics": "none",
    }
    told = Told(tuple(ends), versions_of(["pfl", "torch", "numpy"]), settings)
    tell(folder, told, dict(model.state_dict()))


def _start_others(job: Job) -> Iterator[subprocess.Popen[bytes]]:
    """Starts ranks 1 and up, and makes this process rank 0: pfl reads both when it is imported."""
    addresses = [f"127.0.0.1:{_free_port()}" for _ in range(job.workers)]
    os.environ[_ADDRESSES] = ",".join(addresses)
    command = [sys.executable, *sys.orig_argv[1:]]
    for rank in range(1, job.workers):
        yield subprocess.Popen(command, env={**os.environ, _RANK: str(rank)})
    os.environ[_RANK] = "0"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
