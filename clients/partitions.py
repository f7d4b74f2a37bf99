"""Who owns which examples: seeded, pure, by label or by what the data itself says.

A dealt partition holds one permutation of the examples and where each client's part of it begins,
so that 10,000 clients cost two arrays. Drawn ones hold nothing: a client's examples are drawn when
they are asked for, so that there can be more clients than examples.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared_models.config import Data
from shared_models.datasets.dataset import Split
from shared_models.errors import InputError
from shared_models.labelled import has_label
from shared_models.randomness import generator

Indices = NDArray[np.int64]


class Partition(Sized, Protocol):
    """Sorted client ids, and which examples each one owns."""

    @property
    def client_ids(self) -> Indices:
        """The ids, sorted."""

    def sizes(self) -> Indices:
        """Returns how many examples each client owns, in the order of `client_ids`."""

    def indices(self, client_id: int) -> Indices:
        """Returns the positions of a client's examples; `InputError` for an unknown client."""


@dataclass(frozen=True)
class Dealt:
    """Every example has one owner: client `client_ids[k]` has `order[bounds[k]:bounds[k + 1]]`."""

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
            raise _unknown(client_id, len(self))
        return self.order[self.bounds[place] : self.bounds[place + 1]]


@dataclass(frozen=True)
class Drawn:
    """Each of `clients` draws `each` of the `examples` for itself, so that clients overlap.

    >>> drawn = Drawn(clients=10**6, each=3, examples=100, seed=0)
    >>> len(set(drawn.indices(999_999).tolist()))
    3
    """

    clients: int
    each: int
    examples: int
    seed: int

    def __len__(self) -> int:
        return self.clients

    @property
    def client_ids(self) -> Indices:
        """The ids, sorted."""
        return np.arange(self.clients)

    def sizes(self) -> Indices:
        """Returns how many examples each client owns, in the order of `client_ids`."""
        return np.full(self.clients, self.each)

    def indices(self, client_id: int) -> Indices:
        """Returns the positions of a client's examples; `InputError` for an unknown client."""
        if not 0 <= client_id < self.clients:
            raise _unknown(client_id, self.clients)
        rng = generator(self.seed, "partition", "draws", client_id)
        return rng.choice(self.examples, size=self.each, replace=False)


def _unknown(client_id: int, clients: int) -> InputError:
    return InputError(f"client {client_id} does not exist; there are {clients} clients")


def partition(split: Split, data: Data, seed: int) -> Partition:
    """Returns the partition that `data` asks for; `InputError` when the split cannot give it."""
    whole = _partition(split, data, seed)
    limit = data.max_examples_per_client
    return whole if limit is None else at_most(whole, limit, seed)


def _partition(split: Split, data: Data, seed: int) -> Partition:
    if data.partition == "natural":
        return in_parts(natural(split), data.parts_per_client or 1, seed)
    clients = data.clients or 0
    if data.partition == "draws":
        return draws(len(split), clients, data.examples_per_client or 0, seed)
    if clients > len(split):
        raise InputError(f"data.clients: {clients} clients cannot share {len(split)} examples")
    if data.partition == "iid":
        return iid(len(split), clients, seed)
    if split.y.ndim > 1:
        raise InputError(
            f"data.partition: {data.partition!r} needs data with one label an example; "
            "use iid, draws or natural"
        )
    if data.partition == "shards":
        return shards(split.y, clients, data.shards_per_client, seed)
    return dirichlet(split.y, clients, data.alpha, seed)


def iid(examples: int, clients: int, seed: int) -> Dealt:
    """Shuffles the examples and deals them out; sizes differ by one at most."""
    order = generator(seed, "partition", "iid").permutation(examples)
    bounds = np.arange(clients + 1, dtype=np.int64) * examples // clients
    return Dealt(np.arange(clients), order, bounds)


def draws(examples: int, clients: int, each: int, seed: int) -> Drawn:
    """Lets every client draw its own examples, without replacement; clients overlap."""
    if each > examples:
        raise InputError(f"data.examples_per_client: {each} cannot be drawn from {examples}")
    return Drawn(clients, each, examples, seed)


def shards(labels: NDArray[np.int64], clients: int, per_client: int, seed: int) -> Dealt:
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
    return Dealt(np.arange(clients), order, _bounds(sizes))


def dirichlet(labels: NDArray[np.int64], clients: int, alpha: float, seed: int) -> Dealt:
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


def natural(split: Split) -> Dealt:
    """Gives every client what the data says is its own; `InputError` when the data does not say."""
    if split.client_id is None:
        raise InputError(
            "data.partition: 'natural' needs data that says whose each example is; "
            "use iid, shards or dirichlet with data.clients"
        )
    return _by_owner(split.client_id, np.arange(len(split)))


def in_parts(whole: Dealt, parts: int, seed: int) -> Dealt:
    """Deals each client's examples out over `parts` new ones.

    Client k becomes `k * parts`, `k * parts + 1` and so on. Raises `InputError` when a client has
    fewer examples than parts.
    """
    if parts == 1:
        return whole
    if parts > whole.sizes().min():
        raise InputError(
            f"data.parts_per_client: {parts} parts cannot be cut from a client with "
            f"{whole.sizes().min()} examples"
        )
    order = [
        generator(seed, "partition", "parts", client_id).permutation(whole.indices(client_id))
        for client_id in whole.client_ids.tolist()
    ]
    sizes = [np.diff(np.arange(parts + 1) * len(own) // parts) for own in order]
    client_ids = (whole.client_ids[:, None] * parts + np.arange(parts)).reshape(-1)
    return Dealt(client_ids, np.concatenate(order), _bounds(np.concatenate(sizes)))


def at_most(whole: Partition, limit: int, seed: int) -> Dealt:
    """Keeps at most `limit` examples of each client, drawn without replacement."""
    kept = [
        _draw(whole.indices(client_id), limit, seed, client_id)
        for client_id in whole.client_ids.tolist()
    ]
    sizes = np.array([len(own) for own in kept], np.int64)
    return Dealt(whole.client_ids, np.concatenate(kept), _bounds(sizes))


def _draw(own: Indices, limit: int, seed: int, client_id: int) -> Indices:
    if len(own) <= limit:
        return own
    rng = generator(seed, "partition", "limit", client_id)
    return np.sort(rng.choice(own, size=limit, replace=False))


def _by_owner(owners: Indices, examples: Indices) -> Dealt:
    grouped = np.argsort(owners, kind="stable")
    client_ids, sizes = np.unique(owners, return_counts=True)
    return Dealt(client_ids, examples[grouped], _bounds(sizes))


def _bounds(sizes: Indices) -> Indices:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def label_counts(
    split: Split, whole: Partition, labels: int, client_ids: Sequence[int]
) -> NDArray[np.int64]:
    """Returns how many examples of each label the clients own: `(len(client_ids), labels)`.

    Of masks it counts pixels, of boxes just these, and not what has no label.
    """
    own = [split.y[whole.indices(k)] for k in client_ids]
    if split.holds_boxes:
        return np.array([[(y[..., 2] > y[..., 0]).sum()] for y in own], np.int64)
    return np.stack([np.bincount(y[has_label(y)].reshape(-1), minlength=labels) for y in own])
