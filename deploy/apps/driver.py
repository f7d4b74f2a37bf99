"""The process of one app, started by `launch`: the ServerApp runs here, its clients in actors.

It imports what it needs of ours, then forgets the names and the path of all of it: the app's own
`server.py`, `clients/` or `deploy.py` are found, and ours are not. Actors get our code by value.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from flwr.app import Context, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import ServerApp
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from deploy.apps.grid import AppGrid
from deploy.apps.node import NodeSetup, NodeWorker, clean_path, describe, load, seed
from deploy.engines.crew import Crew, Job, MakeWorker
from shared_models.errors import EngineError

_RUN_ID = 1
_NOTICES = 20


@dataclass(frozen=True)
class Order:
    """What `launch` wants done."""

    folder: str
    serverapp: str
    clientapp: str
    run_config: dict[str, bool | float | int | str]
    nodes: int
    workers: int
    began: float


class _Unusable(Exception):
    """The app cannot be run as it is, and why."""


def main(order_file: str, report_file: str) -> None:
    """Runs the app that the order file describes, and writes a report: what became of it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_parent_process_monitor(os.getppid())
    order = Order(**json.loads(Path(order_file).read_text()))
    report = _report(order, forget_ours(Path(__file__).parents[2]))
    Path(report_file).write_text(json.dumps(report))


def forget_ours(root: Path) -> tuple[str, ...]:
    """Takes our modules and their path out of this process; returns the path that is left."""
    for name, module in list(sys.modules.items()):
        source = getattr(module, "__file__", None) or ""
        if source and Path(source).is_relative_to(root) and not _is_installed(source):
            del sys.modules[name]
    return tuple(entry for entry in sys.path if entry and Path(entry).resolve() != root.resolve())


def _is_installed(source: str) -> bool:
    return Path(source).is_relative_to(sys.prefix)  # the environment may lie in the checkout


def _report(order: Order, path: tuple[str, ...]) -> dict[str, Any]:
    try:
        return {"status": "done", **_simulate(order, path)}
    except KeyboardInterrupt:
        return {"status": "interrupted"}
    except _Unusable as error:
        return {"status": "unusable", "reason": str(error)}
    except EngineError as error:
        return {"status": "failed", "reason": str(error)}
    except (Exception, SystemExit) as error:
        _print_trace(error)
        told = describe(error, order.folder)
        return {"status": "failed", "reason": f"the ServerApp raised {told}; traceback above"}
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from here on there is nothing to interrupt
        ray.shutdown()


def _simulate(order: Order, path: tuple[str, ...]) -> dict[str, Any]:
    # Ray starts first: its actors load the ClientApp while the ServerApp is loaded here.
    ray.init(
        address="local",
        num_cpus=order.workers,
        include_dashboard=False,
        logging_level=logging.ERROR,
    )
    setup = NodeSetup(
        order.folder, order.clientapp, path, _RUN_ID, order.nodes, dict(order.run_config)
    )
    with Crew(MakeWorker(NodeWorker, (setup,)), order.workers) as crew:
        clean_path(order.folder, path)
        server = _server(order)
        for fault in crew.map([Job(())]):
            if fault:
                raise _Unusable(f"clientapp {fault}")
        ready = time.time()
        tally = _serve(server, crew, order)
    return {"startup_s": ready - order.began, "app_s": time.time() - ready, **tally}


def _server(order: Order) -> ServerApp:
    seed(0)
    server, fault = load(order.serverapp, order.folder, ServerApp)
    if fault:
        raise _Unusable(f"serverapp {fault}")
    if server._main is None:
        told = "has no @app.main(): an app of Flower's older API cannot run here"
        raise _Unusable(f"serverapp {order.serverapp}: {told}")
    return server  # type: ignore[no-any-return]


def _serve(server: ServerApp, crew: Crew, order: Order) -> dict[str, Any]:
    # Flower makes messages only inside a task of its own; this process is that task.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, SUPERLINK_NODE_ID, 1
    grid = AppGrid(crew, order.nodes, Run.create_empty(_RUN_ID), _notices(_NOTICES))
    context = Context(_RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(order.run_config))
    seed(0)  # once more: what loading drew depends on what was loaded before
    try:
        server(grid, context)
    except SystemExit as error:
        if error.code:
            raise
    grid.finish()
    return asdict(grid.tally)


def _notices(limit: int) -> Callable[[str], None]:
    """Returns a function that prints lines on standard error, and says when it stops."""
    told = 0

    def notice(line: str) -> None:
        nonlocal told
        told += 1
        if told <= limit:
            print(line, file=sys.stderr, flush=True)
        if told == limit:
            print("further notices of this kind are not shown", file=sys.stderr, flush=True)

    return notice


def _print_trace(error: BaseException) -> None:
    """Prints the traceback from where the app's part of it begins."""
    trace = error.__traceback__
    ours = str(Path(__file__).parent)
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)
