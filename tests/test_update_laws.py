"""Updates are values with laws, however they were cut into blocks and whatever carried them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aggregators.weighted_mean import weighted_mean
from server.patience import merged
from shared_models.arrays import Arrays
from shared_models.messages import BlockRequest
from shared_models.partial import Partial, Row, Sum
from shared_models.wire import decode_partial, encode_partial

laws = settings(deadline=None, max_examples=50)
ABOUT = ("train", 1, 0)
Client = tuple[list[float], int]
"""An update of two arrays, flat, and how many examples it is of."""

clients = st.lists(
    st.tuples(
        st.lists(st.floats(-100, 100, width=32), min_size=5, max_size=5), st.integers(1, 1000)
    ),
    min_size=1,
    max_size=9,
)


def update(flat: Sequence[float]) -> Arrays:
    whole = torch.tensor(flat, dtype=torch.float32)
    return {"w": whole[:4].reshape(2, 2), "b": whole[4]}


def summed(block: Sequence[Client], first: int = 0) -> Partial:
    """Returns a block's partial: sums in float32, in the order of the clients."""
    total = Sum({"w": torch.zeros(2, 2), "b": torch.zeros(())}, 0.0)
    for flat, examples in block:
        arrays = {name: total.arrays[name] + examples * t for name, t in update(flat).items()}
        total = Sum(arrays, total.weight + examples)
    return Partial({"delta": total}, rows(block, first), about=ABOUT)


def single(block: Sequence[Client], first: int = 0) -> Partial:
    updates = [update(flat) for flat, _ in block]
    stacked = {name: torch.stack([own[name] for own in updates]) for name in ("w", "b")}
    return Partial({}, rows(block, first), {"delta": stacked}, about=ABOUT)


def rows(block: Sequence[Client], first: int) -> tuple[Row, ...]:
    return tuple(Row(first + place, examples) for place, (_, examples) in enumerate(block))


def cut(members: Sequence[Client], cuts: set[int]) -> list[tuple[int, Sequence[Client]]]:
    """Returns blocks with the place of their first client."""
    bounds = [0, *sorted(c for c in cuts if 0 < c < len(members)), len(members)]
    return [(a, members[a:b]) for a, b in itertools.pairwise(bounds)]


def mean(partials: Sequence[Partial]) -> Arrays:
    rule = weighted_mean()
    return rule.finish(functools.reduce(rule.add, partials, rule.init()))["delta"]


def in_float64(members: Sequence[Client]) -> Arrays:
    """The mean on a blackboard."""
    total = sum(examples for _, examples in members)
    updates = [(update(flat), examples) for flat, examples in members]
    return {
        name: torch.stack([own[name].double() * n for own, n in updates]).sum(0) / total
        for name in ("w", "b")
    }


def close(found: Arrays, expected: Arrays) -> None:
    # Blocks are summed in float32: nine numbers of at most a hundred, weighted.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def request(partial: Partial) -> BlockRequest:
    return BlockRequest(*ABOUT, 0, tuple(row.client_id for row in partial.rows), {})


def together(*partials: Partial) -> Partial:
    return merged([request(partial) for partial in partials], partials)


@laws
@given(clients, st.sets(st.integers(1, 8)))
def test_any_cut_into_blocks_has_the_same_mean(members: list[Client], cuts: set[int]) -> None:
    blocks = [summed(block, first) for first, block in cut(members, cuts)]
    close(mean(blocks), in_float64(members))
    close(mean([together(*blocks)]), in_float64(members))


@laws
@given(clients, clients, clients)
def test_merging_is_associative(one: list[Client], two: list[Client], three: list[Client]) -> None:
    a, b, c = (summed(block) for block in (one, two, three))
    left, right = together(together(a, b), c), together(a, together(b, c))
    assert left.rows == right.rows
    assert left.sums["delta"].weight == right.sums["delta"].weight
    close(mean([left]), mean([right]))


@laws
@given(clients)
def test_the_empty_partial_is_neutral(members: list[Client]) -> None:
    own, nobody = summed(members), summed([])
    for partials in ([nobody, own], [own, nobody], [own, Partial({}, ())]):
        torch.testing.assert_close(mean(partials), mean([own]), rtol=0, atol=0)
    torch.testing.assert_close(mean([together(own, nobody)]), mean([own]), rtol=0, atol=0)


@laws
@given(clients, st.integers(1, 6).map(lambda power: 2**power))
def test_scaled_weights_change_no_bit(members: list[Client], by: int) -> None:
    # By a power of two, so that no product is rounded.
    heavier = [(flat, examples * by) for flat, examples in members]
    torch.testing.assert_close(mean([summed(heavier)]), mean([summed(members)]), rtol=0, atol=0)


@laws
@given(clients, st.sets(st.integers(1, 8)))
def test_singles_and_sums_tell_the_same(members: list[Client], cuts: set[int]) -> None:
    parts = together(*(single(block, first) for first, block in cut(members, cuts)))
    whole = single(members)
    assert parts.rows == whole.rows
    torch.testing.assert_close(parts.singles, whole.singles, rtol=0, atol=0)
    weights = torch.tensor([row.examples for row in whole.rows], dtype=torch.float64)
    by_hand = {
        name: torch.tensordot(weights, stacked.double(), 1) / weights.sum()
        for name, stacked in parts.singles["delta"].items()
    }
    close(mean([summed(members)]), by_hand)


@laws
@given(clients)
def test_the_wire_changes_no_bit(members: list[Client]) -> None:
    for partial in (summed(members), single(members)):
        again = decode_partial(encode_partial(partial))
        assert (again.rows, again.about) == (partial.rows, partial.about)
        torch.testing.assert_close(again.singles, partial.singles, rtol=0, atol=0)
        for name, part in partial.sums.items():
            assert again.sums[name].weight == part.weight
            torch.testing.assert_close(again.sums[name].arrays, part.arrays, rtol=0, atol=0)
