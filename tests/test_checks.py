"""No bad value gets in."""

from __future__ import annotations

import pytest
import torch

from shared_models.arrays import Arrays, Role
from shared_models.checks import check_update
from shared_models.errors import UpdateError
from shared_models.partial import STANDARD_SUMS

LIKE: Arrays = {"w": torch.zeros(2, 3), "mean": torch.zeros(3), "count": torch.tensor(0)}
ROLES: dict[str, Role] = {"w": "trainable", "mean": "averaged", "count": "carried"}
GOOD = torch.full((2, 3), 0.5)


def check(w: torch.Tensor = GOOD, **other: Arrays) -> None:
    sums = {"delta": {"w": w}, "stats": {"mean": torch.ones(3)}, **other}
    check_update(sums, STANDARD_SUMS, LIKE, ROLES, max_norm=10.0)


def test_a_good_update_passes() -> None:
    check()


@pytest.mark.parametrize(
    ("w", "reason"),
    [
        (torch.full((2, 3), float("nan")), "delta.w: holds NaN"),
        (torch.full((2, 3), float("inf")), "delta.w: holds NaN or infinite"),
        (torch.zeros(3, 2), r"shape \(3, 2\), expected \(2, 3\)"),
        (torch.zeros(2, 3).double(), "dtype torch.float64, expected torch.float32"),
        (torch.full((2, 3), 100.0), "norm of the delta is 245, the bound is 10"),
    ],
)
def test_a_bad_array_is_refused_with_its_name(w: torch.Tensor, reason: str) -> None:
    with pytest.raises(UpdateError, match=reason):
        check(w)


def test_missing_and_unknown_names_are_refused() -> None:
    with pytest.raises(UpdateError, match=r"missing arrays \['w'\], unknown arrays \['v'\]"):
        check(delta={"v": GOOD})
    with pytest.raises(UpdateError, match="sums are"):
        check(control={"w": GOOD})


def test_statistics_may_be_large_but_not_infinite() -> None:
    check(stats={"mean": torch.full((3,), 1e6)})
    with pytest.raises(UpdateError, match=r"stats\.mean"):
        check(stats={"mean": torch.tensor([1.0, float("inf"), 0.0])})
