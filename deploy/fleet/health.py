"""gRPC's health service, as kubelet and others ask it, of a process that knows how it is.

Flower's own says SERVING whatever happens. Here are two services: the nameless one is alive, and
serves while the process was heard of in the last minute; `ready` serves while it does its work.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared_models.errors import InputError

ALIVE, READY = "", "ready"
_SILENCE_S = 60.0


@dataclass(frozen=True)
class HealthAddress:
    """Where the health service listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Health:
    """Answers for the process; a context manager. Without an address it answers nobody."""

    def __init__(self, address: HealthAddress | None = None) -> None:
        self._address = address
        self._heard = time.monotonic()
        self._ready = False
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        if self._address is None:
            return self
        server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(_Servicer(self), server)
        try:
            server.add_insecure_port(str(self._address))
        except RuntimeError:
            raise InputError(
                f"{self._address}: cannot be listened on; choose another --health-port"
            ) from None
        server.start()
        self._server = server
        return self

    def __exit__(self, *_: object) -> None:
        self._ready = False
        if self._server is not None:
            self._server.stop(grace=None).wait()

    def beat(self, *, ready: bool) -> None:
        """Says that the process goes on, and whether it does its work; call it all the time."""
        self._heard = time.monotonic()
        self._ready = ready

    def serves(self, service: str) -> bool | None:
        """Whether a service serves; None where there is no such service."""
        alive = time.monotonic() - self._heard < _SILENCE_S
        return {ALIVE: alive, READY: alive and self._ready}.get(service)


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """What the protocol makes of it; nobody is told of changes (`Watch`)."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  the protocol's name
        """Answers one question."""
        serves = self._health.serves(request.service)
        if serves is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "there are two services: '' and 'ready'")
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if serves else status.NOT_SERVING)
