"""A server far away: its runs are started, looked at, read and stopped, over its one port.

Flower's Control API starts and stops; our own door below `/v1/wildflower` shows run folders.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deploy.fleet.bundle import build_bundle
from deploy.fleet.connection import Connection, answered, open_control, open_http
from shared_models.errors import ServerError

if TYPE_CHECKING:
    import httpx
    from flwr.proto.run_pb2 import Run

_FINISHED = "finished"


@dataclass(frozen=True)
class FlowerRun:
    """One of Flower's runs; `run` is our own id, which may have had others before it."""

    id: int
    run: str
    status: str
    ended: str
    details: str
    began: str

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is at work any more."""
        return self.status == _FINISHED


@dataclass(frozen=True)
class Node:
    """A SuperNode that the server knows; without TLS it has no name."""

    id: int
    name: str
    status: str


class Remote:
    """A server by its connection; a context manager.

    Every method raises `ServerError` when the server does not answer or refuses, and `InputError`
    when it is not to be trusted, or does not trust us.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with answered(self.connection):
            self._control = open_control(self.connection)
            self._stack.callback(self._control.close)
            self._http = self._stack.enter_context(open_http(self.connection))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, run: str, config: str, *, resume: bool, own: Path | None = None) -> int:
        """Starts a run with our own code, and the file of a user's `own` task.

        Returns the number that Flower gives it.
        """
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        bundle = build_bundle(own=own)
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        settings: dict[str, bool | float | int | str] = {"config": config, "run": run}
        request = StartRunRequest(
            fab=fab_to_proto(fab),
            override_config=user_config_to_proto({**settings, "resume": resume}),
        )
        with answered(self.connection):
            answer = self._control.StartRun(request)
        if not answer.HasField("run_id"):
            raise ServerError(f"{self.connection.address}: did not start the run; see its log")
        return int(answer.run_id)

    def flower_run(self, number: int) -> FlowerRun | None:
        """Returns one of Flower's runs; None when the server does not know it."""
        return next((run for run in self.flower_runs() if run.id == number), None)

    def flower_runs(self) -> list[FlowerRun]:
        """Returns all of Flower's runs, the oldest first."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with answered(self.connection):
            found = self._control.ListRuns(ListRunsRequest()).run_dict.values()
        return sorted(map(_flower_run, found), key=lambda run: (run.began, run.id))

    def stop(self, number: int) -> None:
        """Stops one of Flower's runs; its folder stays as it is."""
        from flwr.proto.control_pb2 import StopRunRequest

        with answered(self.connection):
            self._control.StopRun(StopRunRequest(run_id=number))

    def logs(self, number: int) -> Iterator[str]:
        """Yields what the run's ServerApp said, as it comes, until the run is over."""
        from flwr.proto.control_pb2 import StreamLogsRequest

        with answered(self.connection):
            request = StreamLogsRequest(run_id=number, after_timestamp=0.0)
            for answer in self._control.StreamLogs(request):
                yield answer.log_output

    def nodes(self) -> list[Node]:
        """Returns the SuperNodes that are registered."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with answered(self.connection):
            found = self._control.ListNodes(ListNodesRequest()).nodes_info
        return [Node(node.node_id, node.name, node.status) for node in found]

    def folders(self) -> list[dict[str, Any]]:
        """Returns the runs in the server's state folder: `run`, `status`, `bytes`."""
        found: list[dict[str, Any]] = self._get("runs").json()
        return found

    def files(self, run: str) -> Mapping[str, int]:
        """Returns the sizes of the files that can be read of a run."""
        return {told["path"]: told["bytes"] for told in self._get(f"runs/{run}/files").json()}

    def read(self, run: str, path: str, offset: int = 0) -> bytes:
        """Returns a file of a run from an offset on; nothing where there is no such byte."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        answer = self._get(f"runs/{run}/files/{path}", headers, missing=(404, 416))
        if answer.status_code in (404, 416):
            return b""
        # A server that knows no ranges sends the whole.
        return answer.content if answer.status_code == 206 else answer.content[offset:]

    def _get(
        self, path: str, headers: Mapping[str, str] | None = None, missing: tuple[int, ...] = ()
    ) -> httpx.Response:
        with answered(self.connection):
            answer = self._http.get(f"/v1/wildflower/{path}", headers=headers)
            if answer.status_code not in missing:
                answer.raise_for_status()
            return answer


def _flower_run(told: Run) -> FlowerRun:
    own = told.override_config.get("run")
    return FlowerRun(
        told.run_id,
        "" if own is None else own.string,
        told.status.status,
        told.status.sub_status,
        told.status.details,
        told.pending_at,
    )
