"""Partitions: seeded, disjoint, complete, and skewed as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.partitions import Partition, dirichlet, draws, iid, natural, partition, shards
from shared_models.config import Data
from shared_models.datasets.dataset import Split
from shared_models.errors import InputError

LABELS = np.repeat(np.arange(10), 60)
KINDS = {
    "iid": lambda seed: iid(600, 20, seed),
    "shards": lambda seed: shards(LABELS, 20, 2, seed),
    "dirichlet": lambda seed: dirichlet(LABELS, 20, 0.3, seed),
}


def everything(found: Partition) -> list[int]:
    return sorted(i for k in found.client_ids.tolist() for i in found.indices(k).tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_has_one_owner(kind: str) -> None:
    assert everything(KINDS[kind](0)) == list(range(600))


@pytest.mark.parametrize("kind", KINDS)
def test_a_partition_is_a_function_of_its_seed(kind: str) -> None:
    assert np.array_equal(KINDS[kind](3).order, KINDS[kind](3).order)
    assert not np.array_equal(KINDS[kind](3).order, KINDS[kind](4).order)


@given(examples=st.integers(1, 300), clients=st.integers(1, 50), seed=st.integers(0, 9))
@settings(deadline=None)
def test_iid_sizes_differ_by_one_at_most(examples: int, clients: int, seed: int) -> None:
    sizes = iid(examples, clients, seed).sizes()
    assert sizes.sum() == examples
    assert sizes.max() - sizes.min() <= 1


def test_two_shards_hold_few_labels() -> None:
    found = KINDS["shards"](0)
    seen = [len(np.unique(LABELS[found.indices(k)])) for k in range(20)]
    assert max(seen) <= 4
    assert np.mean(seen) < 3


def test_alpha_sets_the_skew() -> None:
    def mean_share_of_top_label(alpha: float) -> float:
        found = dirichlet(LABELS, 20, alpha, seed=0)
        counts = [np.bincount(LABELS[found.indices(k)], minlength=10) for k in range(20)]
        return float(np.mean([c.max() / c.sum() for c in counts]))

    assert mean_share_of_top_label(0.05) > 0.5
    assert mean_share_of_top_label(100.0) < 0.3


@given(alpha=st.floats(1e-3, 1e3), seed=st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_dirichlet_leaves_nobody_empty(alpha: float, seed: int) -> None:
    found = dirichlet(LABELS, 50, alpha, seed)
    assert found.sizes().min() >= 1
    assert everything(found) == list(range(600))


def test_natural_clients_keep_their_ids() -> None:
    split = Split(np.zeros((5, 1)), np.zeros(5, np.int64), np.array([7, 3, 7, 3, 3]))
    found = natural(split)
    assert found.client_ids.tolist() == [3, 7]
    assert found.indices(3).tolist() == [1, 3, 4]
    assert found.indices(7).tolist() == [0, 2]


def test_natural_needs_data_that_says_whose_it_is() -> None:
    with pytest.raises(InputError, match="natural"):
        natural(Split(np.zeros((5, 1)), np.zeros(5, np.int64)))


def test_a_limit_keeps_a_seeded_part_of_each_client() -> None:
    split = Split(np.zeros((600, 1)), LABELS)
    data = Data(partition="iid", clients=20, max_examples_per_client=7)
    whole, limited = iid(600, 20, 0), partition(split, data, seed=0)
    assert limited.sizes().tolist() == [7] * 20
    assert set(limited.indices(4)) <= set(whole.indices(4))


def test_ten_thousand_clients_of_mnist_size() -> None:
    labels = np.arange(60_000) % 10
    for found in (iid(60_000, 10_000, 0), shards(labels, 10_000, 2, 0)):
        assert len(found) == 10_000
        assert found.sizes().sum() == 60_000
    assert dirichlet(labels, 10_000, 0.5, 0).sizes().min() >= 1


def test_too_many_clients_and_unknown_clients_are_named() -> None:
    split = Split(np.zeros((5, 1)), np.zeros(5, np.int64))
    with pytest.raises(InputError, match="9 clients cannot share 5 examples"):
        partition(split, Data(partition="iid", clients=9), seed=0)
    with pytest.raises(InputError, match="client 99 does not exist"):
        iid(10, 5, 0).indices(99)


def test_drawn_clients_overlap_and_cost_nothing_until_they_are_asked_for() -> None:
    found = draws(600, 1_000_000, 60, seed=0)
    assert len(found) == 1_000_000
    one, again, other = (found.indices(k).tolist() for k in (999_999, 999_999, 0))
    assert one == again != other
    assert len(set(one)) == 60
    assert set(one) & set(other), "60 of 600, twice: they share some"
    with pytest.raises(InputError, match="client 1000000 does not exist"):
        found.indices(1_000_000)


def test_draws_need_enough_examples() -> None:
    split = Split(np.zeros((600, 1)), LABELS)
    data = Data(partition="draws", clients=5, examples_per_client=601)
    with pytest.raises(InputError, match="examples_per_client: 601 cannot be drawn from 600"):
        partition(split, data, 0)
