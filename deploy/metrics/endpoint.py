"""`/metrics` over HTTP: where Prometheus comes to read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.metrics.series import Series
from shared_models.errors import InputError


@dataclass(frozen=True)
class MetricsAddress:
    """Where it listens; port 0 is any that is free."""

    host: str = "127.0.0.1"
    port: int = 0


@contextlib.contextmanager
def served(address: MetricsAddress, series: Series) -> Iterator[int]:
    """Serves the series until the block is left; yields the port.

    Raises `InputError` when the address cannot be listened on.
    """
    from prometheus_client import start_http_server

    from deploy.metrics.exposition import registry_of

    try:
        server, thread = start_http_server(address.port, address.host, registry_of(series))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--metrics-port {address.port}, --metrics-bind {address.host}: cannot be listened on: "
            f"{reason}; choose others"
        ) from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
