"""Who trains in a round, and with whom: pure functions of seed, stage, round and population."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from shared_models.randomness import generator

Blocks = tuple[tuple[int | None, tuple[int, ...]], ...]


def count_of(share: float, clients: int) -> int:
    """Returns how many clients a share of them is, rounded up, as decimals have it.

    >>> math.ceil(0.07 * 100), count_of(0.07, 100)
    (8, 7)
    """
    return math.ceil(round(share * clients, 9))


def sample_cohort(
    client_ids: Sequence[int],
    size: int,
    seed: int,
    key: tuple[str, int, int],
    purpose: str = "cohort",
) -> tuple[int, ...]:
    """Returns `size` clients drawn without replacement (all, if there are fewer), sorted.

    `key` is (stage, round, attempt); each purpose draws for itself.

    >>> draw = sample_cohort(range(9), 3, 0, ("train", 1, 0))
    >>> draw == sample_cohort(range(9), 3, 0, ("train", 1, 0))
    True
    """
    if size >= len(client_ids):
        return tuple(sorted(client_ids))
    return tuple(sorted(draw_clients(client_ids, size, seed, key, purpose)))


def draw_clients(
    client_ids: Sequence[int],
    size: int,
    seed: int,
    key: tuple[str, int, int],
    purpose: str = "cohort",
) -> tuple[int, ...]:
    """Returns the clients of `sample_cohort` in the order in which they are drawn."""
    rng = generator(seed, *key, purpose)
    chosen = rng.choice(len(client_ids), size=min(size, len(client_ids)), replace=False)
    return tuple(client_ids[place] for place in chosen.tolist())


def cut_blocks(
    cohort: Sequence[int], block_size: int, node_of: Mapping[int, int] | None = None
) -> Blocks:
    """Returns the block map: `(node, client_ids)` in the order in which partials are folded.

    Where any node may train any client (`node_of` None) the sorted cohort is cut to size. On a
    fleet each node's clients are; nodes are ordered by their smallest client id, because Flower's
    node ids differ from run to run.
    """
    if node_of is None:
        return tuple((None, block) for block in _cut(cohort, block_size))
    by_node = sorted(cohort, key=lambda client_id: node_of[client_id])
    groups = [tuple(ids) for _, ids in groupby(by_node, key=lambda client_id: node_of[client_id])]
    return tuple(
        (node_of[block[0]], block) for ids in sorted(groups) for block in _cut(ids, block_size)
    )


def _cut(ids: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[start : start + size]) for start in range(0, len(ids), size))
