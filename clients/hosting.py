"""What a node is told to host."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Keeping:
    """Where a node keeps what its clients keep from round to round, and how much that may take."""

    folder: str
    room_mb: int


@dataclass(frozen=True)
class Hosting:
    """Which clients a node hosts, where their data is, and how many threads train them.

    Without `keeping` they can keep nothing from round to round.
    """

    data: str
    client_ids: tuple[int, ...]
    threads: int = 1
    keeping: Keeping | None = None

    def to_json(self) -> str:
        """Returns what `from_json` takes."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Hosting:
        """Returns what `to_json` was given."""
        told = json.loads(text)
        keeping = None if told["keeping"] is None else Keeping(**told["keeping"])
        return Hosting(told["data"], tuple(told["client_ids"]), told["threads"], keeping)
