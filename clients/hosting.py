"""What a node is told to host."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Hosting:
    """Which clients a node hosts, where their data is, and how many threads train them."""

    data: str
    client_ids: tuple[int, ...]
    threads: int = 1

    def to_json(self) -> str:
        """Returns what `from_json` takes."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Hosting:
        """Returns what `to_json` was given."""
        told = json.loads(text)
        return Hosting(told["data"], tuple(told["client_ids"]), told["threads"])
