"""The benchmark of the trainers: every example is there, and every trainer has time or reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.command import RESULTS
from benchmarks.trainers import EXAMPLES, complete, report
from clients.trainers import TRAINERS
from shared_models.errors import InputError
from tests.conftest import ROOT


def test_the_table_in_the_docs_is_that_of_the_newest_result_and_has_every_example() -> None:
    told = json.loads(max(RESULTS.glob("*-trainers.json")).read_text())
    assert sorted(told["examples"]) == sorted(path.stem for path in EXAMPLES.glob("*.toml"))
    assert report(told) in (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_what_is_no_result_is_refused_before_it_is_measured(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"result\.json: is no result to go on with"):
        complete(path, ["digits"], turns=1)
    with pytest.raises(InputError, match="is no result to go on with"):
        complete(tmp_path, ["digits"], turns=1)
    assert path.read_text() == content


def test_an_example_is_measured_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    told = complete(path, ["digits"], turns=1)
    assert json.loads(path.read_text()) == told
    own = told["examples"]["digits"]
    known = {name.removesuffix("+") for name in own["ms_a_client"]} | own["left_out"].keys()
    assert known | {"loop"} == set(TRAINERS)  # reused stands for it
    assert min(own["ms_a_client"].values()) > 0
