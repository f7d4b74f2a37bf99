"""The weighted mean is a mean: it splits, scales and stays within its values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregators.weighted_mean import weighted_mean
from shared_models.partial import Partial, Row, Sum

values = st.lists(
    st.tuples(st.floats(-100, 100, width=32), st.integers(1, 1000)), min_size=1, max_size=8
)


def partial(members: list[tuple[float, int]]) -> Partial:
    total = sum((torch.tensor([v], dtype=torch.float64) * n for v, n in members), torch.zeros(1))
    weight = float(sum(n for _, n in members))
    return Partial({"delta": Sum({"w": total}, weight)}, (Row(0, int(weight)),))


def mean_of(*partials: Partial) -> float:
    rule = weighted_mean()
    aggregate = rule.init()
    for one in partials:
        aggregate = rule.add(aggregate, one)
    return float(rule.finish(aggregate)["delta"]["w"])


@given(values)
def test_halves_merged_equal_the_whole(members: list[tuple[float, int]]) -> None:
    half = len(members) // 2
    parts = [partial(part) for part in (members[:half], members[half:]) if part]
    assert mean_of(*parts) == pytest.approx(mean_of(partial(members)), abs=1e-9)


@given(values, st.integers(2, 9))
def test_scaling_all_weights_changes_nothing(members: list[tuple[float, int]], by: int) -> None:
    heavier = [(value, weight * by) for value, weight in members]
    assert mean_of(partial(heavier)) == pytest.approx(mean_of(partial(members)), abs=1e-9)


@given(values)
def test_the_mean_lies_between_its_values(members: list[tuple[float, int]]) -> None:
    only = [value for value, _ in members]
    assert min(only) - 1e-6 <= mean_of(*(partial([m]) for m in members)) <= max(only) + 1e-6


def test_no_weight_means_no_mean() -> None:
    rule = weighted_mean()
    assert rule.finish(rule.init()) == {}
