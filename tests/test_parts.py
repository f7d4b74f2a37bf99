"""Parts compose: every pair that the config accepts trains, every other one is refused with why."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.combinations import Choice, config_of, every_pair, run
from shared_models.errors import ConfigError

REASONS = ("means over clients", "normalised by a mean", "plain SGD went", "no normalisation")


def named(choice: Choice) -> str:
    return "-".join(choice.values())


@pytest.mark.slow
@pytest.mark.parametrize("choice", list(every_pair()), ids=named)
def test_every_pair_of_parts_trains_or_is_refused(choice: Choice, tmp_path: Path) -> None:
    try:
        config = config_of(choice)
    except ConfigError as error:
        assert any(reason in str(error) for reason in REASONS)
        return
    assert run(config, tmp_path / "run") > 0.05
