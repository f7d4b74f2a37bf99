"""Parts compose: every pair that the config accepts trains, every other one is refused with why."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.combinations import Choice, config_of, every_pair, run
from shared_models.errors import InputError

REASONS = (
    "means over clients",
    "normalised by a mean",
    "plain SGD went",
    "no normalisation",
    "is for windows of sensors",
)


def named(choice: Choice) -> str:
    return "-".join(choice.values())


def clashes(choice: Choice) -> bool:
    objective, local = choice.get("objective"), choice.get("local_optimizer", "sgd")
    no_mean = choice.get("aggregator", "weighted_mean") != "weighted_mean"
    return (
        objective == "forecasting"
        or (objective == "scaffold" and (no_mean or local != "sgd"))
        or (objective == "fednova" and (no_mean or local not in {"sgd", "momentum"}))
    )


@pytest.mark.slow
@pytest.mark.parametrize("choice", list(every_pair()), ids=named)
def test_every_pair_of_parts_trains_or_is_refused(choice: Choice, tmp_path: Path) -> None:
    if clashes(choice):
        with pytest.raises(InputError, match="|".join(REASONS)):
            run(config_of(choice), tmp_path / "run")
    else:
        assert run(config_of(choice), tmp_path / "run") > 0.05
