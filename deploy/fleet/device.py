"""What a device is started with, and where its own files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clients.events import Observer, nobody
from clients.warm.service import Limits
from deploy.fleet.connection import Connection
from deploy.fleet.health import HealthAddress


@dataclass(frozen=True)
class Device:
    """What a device is started with.

    Attributes:
        connection: The server.
        key: The node's private key; None on a server without TLS.
        state: The folder of this device's own files.
        hosting_json: Which clients it hosts and where their data is.
        limits: What a training may take.
        max_disk_mb: What the state folder may take.
        health: Where gRPC's health service listens; None for none.
        observe: Who watches it.
    """

    connection: Connection
    key: Path | None
    state: Path
    hosting_json: str
    limits: Limits
    max_disk_mb: int
    health: HealthAddress | None = None
    observe: Observer = nobody

    @property
    def flower_home(self) -> Path:
        """Where Flower unpacks bundles."""
        return self.state / "flower"

    @property
    def log(self) -> Path:
        """What Flower's processes say."""
        return self.state / "supernode.log"

    @property
    def trainer_log(self) -> Path:
        """What the trainer says."""
        return self.state / "trainer.log"

    @property
    def own_log(self) -> Path:
        """What the terminal is told, with the time."""
        return self.state / "client.log"
