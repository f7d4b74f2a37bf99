"""Stock Flower: its simulation engine, its FedAvg, a plain ClientApp.

Run by `benchmarks.simulation` as `python -m benchmarks.flower_peer FOLDER`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, ConfigRecordValues, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.flower_app import app as client_app
from benchmarks.job import Job, Told, read_job, tell, versions_of
from shared_models.arrays import load_arrays


def make_server(folder: Path, job: Job) -> ServerApp:
    """Returns a ServerApp that runs the job under FedAvg, without evaluation."""
    server_app = ServerApp()
    cohort = len(job.cohorts[0])

    @server_app.main()
    def run(grid: Grid, context: Context) -> None:  # noqa: ARG001 - what Flower calls it with
        ends = []

        def note(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:  # noqa: ARG001
            ends.append(time.time())
            return None

        strategy = FedAvg(
            fraction_train=cohort / job.clients,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=job.clients,
        )
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(load_arrays(folder / "start.safetensors")),
            num_rounds=len(job.cohorts),
            train_config=ConfigRecord({"folder": str(folder)}),
            evaluate_fn=note,  # called before the first round and after each
        )
        settings = {**_backend(job), "strategy": "FedAvg, fraction_evaluate=0", "threads": 1}
        told = Told(tuple(ends[1:]), versions_of(["flwr", "ray", "torch", "numpy"]), settings)
        tell(folder, told, dict(result.arrays.to_torch_state_dict()))

    return server_app


def _backend(job: Job) -> dict[str, dict[str, ConfigRecordValues]]:
    # Stock Flower reserves two CPUs for a client, which would leave one actor on two cores.
    return {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": job.workers, "logging_level": "warning"},
    }


def main(folder: Path) -> None:
    """Runs the job in `folder`."""
    job = read_job(folder)
    run_simulation(
        server_app=make_server(folder, job),
        client_app=client_app,
        num_supernodes=job.clients,
        backend_config=_backend(job),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
