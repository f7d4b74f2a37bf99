"""Ranges of the values inside a model: laws of the merge, and parity with plain hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shared_models.errors import InputError
from shared_models.ranges import (
    BINS,
    Range,
    clipped,
    histogram,
    join,
    merge,
    ranges_of,
    traced,
    values_of,
)
from shared_models.tasks import TASKS, load_task

FINITE = st.floats(-1e4, 1e4, width=32)
PARTS = st.lists(
    st.lists(FINITE, min_size=1, max_size=20).map(torch.tensor),
    min_size=1,
    max_size=6,
)


def told(parts: list[Tensor]) -> dict[str, Range]:
    return merge(ranges_of({"v": part}) for part in parts)


@given(PARTS)
def test_merged_ranges_are_those_of_all_data_at_once_in_any_order(parts: list[Tensor]) -> None:
    whole = ranges_of({"v": torch.cat(parts)})
    assert told(parts) == told(parts[::-1]) == whole
    half = len(parts) // 2
    assert merge([told(parts[:half]), told(parts[half:])]) == whole


def test_nothing_merges_to_nothing_and_a_part_with_itself_to_itself() -> None:
    own = {"v": Range(-1.0, 2.0)}
    assert merge([]) == {}
    assert merge([own, own]) == merge([{}, own]) == own


@given(PARTS)
def test_histograms_add_up_to_that_of_all_data_at_once(parts: list[Tensor]) -> None:
    added = join({"v": histogram(part)} for part in parts)["v"]
    assert torch.equal(added, histogram(torch.cat(parts)))
    assert added.shape == (BINS,)
    assert int(added.sum()) == sum(len(part) for part in parts)


@given(st.lists(FINITE, min_size=1, max_size=300), st.floats(51.0, 100.0))
def test_clipping_leaves_no_more_outside_than_it_may(values: list[float], percent: float) -> None:
    x = torch.tensor(values)
    own = ranges_of({"v": x})["v"]
    cut = clipped(own, histogram(x).numpy(), percent)
    allowed = (1 - percent / 100) * len(values)
    assert own.low <= cut.low <= cut.high <= own.high
    assert int((x < cut.low).sum()) <= allowed
    assert int((x > cut.high).sum()) <= allowed


def test_everything_of_it_is_the_whole_range_and_less_cuts_the_outlier() -> None:
    x = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([1000.0])])
    own, counts = ranges_of({"v": x})["v"], histogram(x).numpy()
    assert clipped(own, counts, 100.0) == own
    assert clipped(own, counts, 99.9).high == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    "name", [n for n in TASKS if "lstm" not in n and n not in {"mnist-gan", "text-rnn"}]
)
def test_ranges_are_those_that_hooks_on_a_plain_loop_see(name: str) -> None:
    task = load_task(name)
    model = task.model(3).eval()
    graph = traced(model)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=task.sample(7).shape)).float()
    found = merge(ranges_of(values_of(graph, part)) for part in torch.split(x, 3))
    seen: dict[str, list[Tensor]] = {}

    def keep(key: str, output: object) -> None:
        if isinstance(output, Tensor):  # an LSTM gives several
            seen.setdefault(key.replace(".", "_"), []).append(output.flatten())

    for key, layer in model.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _m, _x, out, key=key: keep(key, out))
    with torch.inference_mode():
        for example in x:
            model(example[None])
    for key, outputs in seen.items():
        lows, highs = torch.cat(outputs).min(), torch.cat(outputs).max()
        assert found[key].low == pytest.approx(float(lows), rel=1e-5, abs=1e-5)
        assert found[key].high == pytest.approx(float(highs), rel=1e-5, abs=1e-5)
    assert found["x"] == ranges_of({"x": x})["x"]


def test_a_model_that_branches_on_its_input_is_refused_by_a_sentence() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if bool(x.sum() > 0) else -x

    with pytest.raises(InputError, match=r"torch\.fx cannot trace it"):
        traced(Branching())
