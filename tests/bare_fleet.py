"""Flower's own SuperLink and SuperNodes as processes, without TLS and without our doors."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@dataclass
class BareFleet:
    """Processes in a folder, which also holds the server's state; `close` ends them all."""

    folder: Path
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def start(self, name: str, *command: object) -> None:
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.folder / "flwr" / name),  # two would unpack one bundle at once
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "WILDFLOWER_STATE": str(self.state),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                list(map(str, command)),
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_superlink(self) -> None:
        own = ("--host", "127.0.0.1", "--port", self.port, "--database", self.folder / "link.db")
        self.start("superlink", BIN / "flower-superlink", "--insecure", *own)
        self.wait(lambda: _answers(self.port), 60)

    def start_node(self, place: int, places: int) -> None:
        own = ("--superlink", f"127.0.0.1:{self.port}", "--host", "127.0.0.1")
        config = f"partition-id={place} num-partitions={places}"
        more = ("--port", free_port(), "--node-config", config)
        self.start(f"node-{place}", BIN / "flower-supernode", "--insecure", *own, *more)

    def submit(self, **run_config: bool | str) -> int:
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        from deploy.fleet.bundle import build_bundle

        bundle = build_bundle()
        with self.control() as control:
            request = StartRunRequest(
                fab=fab_to_proto(Fab(_sha256(bundle), bundle, {})),
                override_config=user_config_to_proto({**run_config}),
            )
            return int(control.StartRun(request).run_id)

    @contextlib.contextmanager
    def control(self) -> Iterator[Any]:
        from flwr.supercore.control import ControlHttpClient

        client = ControlHttpClient.from_server_address(
            server_address=f"127.0.0.1:{self.port}",
            insecure=True,
            root_certificates=None,
            interceptors=[],
        )
        try:
            yield client
        finally:
            client.close()

    def wait_for(self, path: Path, seconds: float) -> None:
        self.wait(path.exists, seconds)

    def wait(self, is_so: Any, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < until, self.told()
            time.sleep(0.2)

    def told(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-2500:]}" for log in logs)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        end_tree(process.pid)
        process.wait(10)

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)


def end_tree(pid: int) -> None:
    """Kills a process that we started and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for own in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                own.send_signal(signal.SIGKILL)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()
