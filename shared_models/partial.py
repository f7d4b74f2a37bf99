"""What comes back from a block of clients: named sums and a row per client.

A partial is a value with laws: partials of one round merge in block order, the empty one is
neutral, and scaling every weight changes no mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from shared_models.arrays import Arrays, Role, size_bytes, with_role

Status: TypeAlias = Literal["ok", "refused", "failed", "late"]
About: TypeAlias = tuple[str, int, int]
"""Which round a message is about: stage, round, attempt."""
ClientState: TypeAlias = dict[str, Arrays]
"""What a client keeps from round to round, by name: control variates, personal layers."""


@dataclass(frozen=True)
class SumSpec:
    """What a named sum is made of: arrays of a role, or a number; by examples or all alike."""

    role: Role | Literal["number"]
    weight: Literal["examples", "one"] = "examples"

    def like(self, arrays: Arrays, roles: Mapping[str, Role]) -> Arrays:
        """Returns arrays of the right names, shapes, dtypes: the model's, or a `value` of ()."""
        if self.role == "number":
            first = next(iter(arrays.values()))
            return {"value": torch.zeros((), dtype=first.dtype, device=first.device)}
        return with_role(arrays, roles, self.role)

    def weigh(self, examples: int) -> int:
        """Returns a client's weight in this sum."""
        return examples if self.weight == "examples" else 1


STANDARD_SUMS: Mapping[str, SumSpec] = {
    "delta": SumSpec("trainable"),
    "stats": SumSpec("averaged"),
}


@dataclass(frozen=True)
class Sum:
    """`sum_i weight_i * arrays_i` and `sum_i weight_i`."""

    arrays: Arrays
    weight: float


@dataclass(frozen=True)
class Row:
    """What became of one client.

    `refused` had a bad update, `failed` had none, `late` was not waited for.
    """

    client_id: int
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    status: Status = "ok"
    reason: str = ""


@dataclass(frozen=True)
class Partial:
    """The result of one block.

    Updates come back as `sums`, or, for an aggregator that needs every single one, as `singles`:
    by the sum's name, arrays of shape `(k, *shape)`, an entry for each of the k rows that are `ok`,
    in their order. `states` are what clients want to keep, by client id; `about` is the request's.
    `timed_out` says that a clock on the wall decided how its clients were trained, or whether: the
    server's own note, which no client sends.
    """

    sums: Mapping[str, Sum]
    rows: tuple[Row, ...]
    singles: Mapping[str, Arrays] = field(default_factory=dict)
    states: Mapping[int, ClientState] = field(default_factory=dict)
    about: About | None = None
    timed_out: bool = False

    @property
    def size_bytes(self) -> int:
        """How many bytes its arrays take on the way up."""
        updates = sum(size_bytes(part.arrays) for part in self.sums.values())
        singles = sum(size_bytes(arrays) for arrays in self.singles.values())
        states = sum(size_bytes(a) for own in self.states.values() for a in own.values())
        return updates + singles + states


def bad_rows(client_ids: tuple[int, ...], status: Status, reason: str) -> tuple[Row, ...]:
    """Returns a row for every client of a block that cannot count as a whole."""
    return tuple(Row(client_id, 0, {}, status, reason) for client_id in client_ids)
