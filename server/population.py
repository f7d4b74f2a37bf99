"""All clients there are, as the nodes' answers say."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from shared_models.errors import RoundError
from shared_models.messages import Hello


@dataclass(frozen=True)
class Population:
    """Sorted client ids with example counts; `node_of` is None where any node may train anyone."""

    client_ids: tuple[int, ...]
    examples: tuple[int, ...]
    node_of: Mapping[int, int] | None
    data_sha256: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.client_ids)

    @functools.cached_property
    def examples_of(self) -> Mapping[int, int]:
        """How many examples each client said it has."""
        return dict(zip(self.client_ids, self.examples, strict=True))


def merge_hellos(hellos: Mapping[int, Hello]) -> Population:
    """Returns the union of what the nodes host.

    Raises `RoundError` when there is nobody, when two nodes claim one client, or when simulation
    workers see different data.
    """
    if not any(hello.client_ids for hello in hellos.values()):
        raise RoundError("no node hosts a client; start clients, or check their data")
    for node, hello in hellos.items():
        for client_id, count in zip(hello.client_ids, hello.examples, strict=True):
            if count < 1:
                raise RoundError(f"node {node}: client {client_id} says it has {count} examples")
    kinds = {hello.shared for hello in hellos.values()}
    if len(kinds) > 1:
        raise RoundError("some nodes host their own clients and some can train any: use one kind")
    digests = tuple(sorted({hello.data_sha256 for hello in hellos.values()}))
    if kinds == {True}:
        return _shared(hellos, digests)
    return _own(hellos, digests)


def _shared(hellos: Mapping[int, Hello], digests: tuple[str, ...]) -> Population:
    first = next(iter(hellos.values()))
    for node, hello in hellos.items():
        if (hello.client_ids, hello.data_sha256) != (first.client_ids, first.data_sha256):
            raise RoundError(f"node {node} sees other data than the first node: same files needed")
    return Population(first.client_ids, first.examples, None, digests)


def _own(hellos: Mapping[int, Hello], digests: tuple[str, ...]) -> Population:
    examples: dict[int, int] = {}
    node_of: dict[int, int] = {}
    for node, hello in hellos.items():
        for client_id, count in zip(hello.client_ids, hello.examples, strict=True):
            if client_id in node_of:
                raise RoundError(
                    f"client {client_id} is claimed by node {node_of[client_id]} and node {node}"
                )
            node_of[client_id], examples[client_id] = node, count
    ids = tuple(sorted(node_of))
    return Population(ids, tuple(examples[client_id] for client_id in ids), node_of, digests)
