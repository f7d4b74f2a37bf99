"""A script: runs a Flower app under Flower's own simulation engine, as its simulation process does.

    python -P tests/stock_flower.py FOLDER NODES [key=value ...]

The same calls as `flwr run` makes on a local federation, without bundling the app and without the
SuperLink that stays behind; one test compares the two.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.common.config import (
    get_fused_config_from_dir,
    get_project_config,
    parse_config_args,
)
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType

RUN_ID = 7


def main(folder: Path, nodes: int, overrides: list[str]) -> None:
    components = get_project_config(folder)["tool"]["flwr"]["app"]["components"]
    config = get_fused_config_from_dir(folder, parse_config_args(overrides))
    run = Run.create_empty(RUN_ID)
    run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
    run.override_config = parse_config_args(overrides)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SUPERLINK_NODE_ID, 1
    _run_simulation(
        num_supernodes=nodes,
        exit_event=EventType.FLWR_SIMULATION_RUN_LEAVE,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}},
        client_app_attr=components["clientapp"],
        server_app_attr=components["serverapp"],
        server_app_context=Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), config),
        app_dir=str(folder),
        run=run,
        is_app=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]), sys.argv[3:])
