"""Who owns which examples: seeded, pure, by label or by what the data itself says.

A partition holds one permutation of the examples and where each client's part of it begins, so
that 10,000 clients cost two arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared_models.config import Data
from shared_models.datasets.dataset import Split
from shared_models.errors import InputError
from shared_models.randomness import generator

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """Client `client_ids[k]` owns `order[bounds[k]:bounds[k + 1]]`; ids are sorted."""

    client_ids: Indices
    order: Indices
    bounds: Indices

    def __len__(self) -> int:
        return len(self.client_ids)

    def sizes(self) -> Indices:
        """Returns how many examples each client owns, in the order of `client_ids`."""
        return np.diff(self.bounds)

    def indices(self, client_id: int) -> Indices:
        """Returns the positions of a client's examples; `InputError` for an unknown client."""
        place = int(np.searchsorted(self.client_ids, client_id))
        if place == len(self) or self.client_ids[place] != client_id:
            raise InputError(f"client {client_id} does not exist; there are {len(self)} clients")
        return self.order[self.bounds[place] : self.bounds[place + 1]]


def partition(split: Split, data: Data, seed: int) -> Partition:
    """Returns the partition that `data` asks for; `InputError` when the split cannot give it."""
    whole = _partition(split, data, seed)
    limit = data.max_examples_per_client
    return whole if limit is None else at_most(whole, limit, seed)


def _partition(split: Split, data: Data, seed: int) -> Partition:
    if data.partition == "natural":
        return natural(split)
    clients = data.clients or 0
    if clients > len(split):
        raise InputError(f"data.clients: {clients} clients cannot share {len(split)} examples")
    if data.partition == "iid":
        return iid(len(split), clients, seed)
    if data.partition == "shards":
        return shards(split.y, clients, data.shards_per_client, seed)
    return dirichlet(split.y, clients, data.alpha, seed)


def iid(examples: int, clients: int, seed: int) -> Partition:
    """Shuffles the examples and deals them out; sizes differ by one at most."""
    order = generator(seed, "partition", "iid").permutation(examples)
    bounds = np.arange(clients + 1, dtype=np.int64) * examples // clients
    return Partition(np.arange(clients), order, bounds)


def shards(labels: NDArray[np.int64], clients: int, per_client: int, seed: int) -> Partition:
    """Sorts by label, cuts into equal shards, gives each client `per_client` of them.

    McMahan et al. 2017, section 3: with two shards most clients see two labels only.
    """
    count = clients * per_client
    if count > len(labels):
        raise InputError(
            f"data.shards_per_client: {count} shards cannot be cut from {len(labels)} examples"
        )
    rng = generator(seed, "partition", "shards")
    # Shuffled first, so that examples of one label are not in the file's order.
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    cuts = np.arange(count + 1, dtype=np.int64) * len(labels) // count
    dealt = rng.permutation(count)
    order = np.concatenate([by_label[cuts[k] : cuts[k + 1]] for k in dealt])
    sizes = np.diff(cuts)[dealt].reshape(clients, per_client).sum(axis=1)
    return Partition(np.arange(clients), order, _bounds(sizes))


def dirichlet(labels: NDArray[np.int64], clients: int, alpha: float, seed: int) -> Partition:
    """Deals each label's examples by proportions drawn from Dirichlet(alpha) over the clients.

    Hsu, Qi, Brown 2019, section 3, in the by-label form that is in common use. Every client gets
    one example first, so that nobody is empty.
    """
    rng = generator(seed, "partition", "dirichlet")
    shuffled = rng.permutation(len(labels))
    first, rest = shuffled[:clients], shuffled[clients:]
    owners, examples = [np.arange(clients)], [first]
    for label in np.unique(labels):
        own = rest[labels[rest] == label]
        # Gamma draws, normalised, are a Dirichlet draw; a tiny alpha may round all of them to 0.
        share = rng.gamma(alpha, size=clients) + np.finfo(float).tiny
        cuts = np.round(np.cumsum(share) / share.sum() * len(own)).astype(np.int64)
        owners.append(np.repeat(np.arange(clients), np.diff(cuts, prepend=0)))
        examples.append(own)
    return _by_owner(np.concatenate(owners), np.concatenate(examples))


def natural(split: Split) -> Partition:
    """Gives every client what the data says is its own; `InputError` when the data does not say."""
    if split.client_id is None:
        raise InputError(
            "data.partition: 'natural' needs data that says whose each example is; "
            "use iid, shards or dirichlet with data.clients"
        )
    return _by_owner(split.client_id, np.arange(len(split)))


def at_most(whole: Partition, limit: int, seed: int) -> Partition:
    """Keeps at most `limit` examples of each client, drawn without replacement."""
    kept = [
        _draw(whole.indices(client_id), limit, seed, client_id)
        for client_id in whole.client_ids.tolist()
    ]
    sizes = np.array([len(own) for own in kept], np.int64)
    return Partition(whole.client_ids, np.concatenate(kept), _bounds(sizes))


def _draw(own: Indices, limit: int, seed: int, client_id: int) -> Indices:
    if len(own) <= limit:
        return own
    rng = generator(seed, "partition", "limit", client_id)
    return np.sort(rng.choice(own, size=limit, replace=False))


def _by_owner(owners: Indices, examples: Indices) -> Partition:
    grouped = np.argsort(owners, kind="stable")
    client_ids, sizes = np.unique(owners, return_counts=True)
    return Partition(client_ids, examples[grouped], _bounds(sizes))


def _bounds(sizes: Indices) -> Indices:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def label_counts(
    split: Split, whole: Partition, labels: int, client_ids: Sequence[int]
) -> NDArray[np.int64]:
    """Returns how many examples of each label the clients own: `(len(client_ids), labels)`."""
    return np.stack([np.bincount(split.y[whole.indices(k)], minlength=labels) for k in client_ids])
