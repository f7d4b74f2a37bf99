"""What a report says beyond its numbers: is the model any good, and was it better before."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from deploy.report.findings import better_before, failed_gates, final_value, is_useless
from deploy.report.headline import cards, headline, status
from deploy.report.reading import read_story
from deploy.report.story import Story
from server.records import Best, RoundRecord
from tests.told_runs import CONFIG, SAMPLE, records, write_run


def told(path: Path, *values: float, config: str = CONFIG, best: Best | None = None) -> Story:
    """Returns a finished run whose last rounds have these accuracies."""
    folder, own = write_run(path / "told", config=config), records()
    last = own[len(own) - len(values) :]
    changed = [
        replace(record, eval={"accuracy": value}, best=best)
        for record, value in zip(last, values, strict=True)
    ]
    write_records(folder, [*own[: len(own) - len(values)], *changed])
    return read_story(folder)


def write_records(folder: Path, own: list[RoundRecord]) -> None:
    (folder / "metrics.jsonl").write_text("".join(record.to_json() + "\n" for record in own))


@pytest.mark.parametrize(("last", "useless"), [(0.38, True), (0.5, False)])
def test_a_model_is_held_against_always_saying_the_same(
    tmp_path: Path, last: float, useless: bool
) -> None:
    story = told(tmp_path, last)  # 10 of 30 test examples are cats
    said = " ".join(headline(story))
    assert "Always saying 'cat' would give 0.3333" in said
    assert is_useless(story) is useless
    assert ("Warning" in said) is useless
    assert (cards(story)[0].tone == "bad") is useless


@pytest.mark.parametrize(("values", "round_"), [((0.9, 0.8, 0.85), 1), ((0.86, 0.8, 0.85), None)])
def test_a_round_that_was_clearly_better_is_named_as_the_charts_count(
    tmp_path: Path, values: tuple[float, ...], round_: int | None
) -> None:
    story = told(tmp_path, *values)
    found = better_before(story)
    assert (found and found[1].round) == round_
    said = "Round 6 was better than the last one: accuracy 0.9000; keep_best = true in stage tune"
    assert (said in " ".join(headline(story))) is (round_ is not None)


def test_where_the_best_round_is_kept_its_value_is_the_final_one(tmp_path: Path) -> None:
    config = CONFIG.replace('kind = "finetune"', 'kind = "finetune"\nkeep_best = true')
    story = told(tmp_path, 0.9, 0.8, 0.7, config=config, best=Best(1, "accuracy", 0.9))
    assert final_value(story) == 0.9
    assert better_before(story) is None


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("model-int8.tflite: failed its gate", "trained; 1 of 3 files failed their check"),
        ("round 4: no quorum", "failed"),
    ],
)
def test_a_run_of_which_only_files_failed_is_trained(
    tmp_path: Path, reason: str, shown: str
) -> None:
    folder = write_run(tmp_path / "told")
    summary = json.loads((folder / "summary.json").read_text())
    failed = {**summary, "status": "failed", "reason": reason}
    (folder / "summary.json").write_text(json.dumps(failed))
    story = read_story(folder)
    assert status(story) == shown
    assert [file.file for file in failed_gates(story)] == ["model-int8.tflite"][: shown != "failed"]


def test_what_clients_measure_is_said_to_be_of_their_training_data(tmp_path: Path) -> None:
    story = read_story(write_run(tmp_path / "told"))
    said = " ".join(headline(story))
    assert "by 20 clients, 10 a round" in said
    assert "19 clients measured it on their own data, which they also train on" in said
    assert "accuracy 0.5200 over all their examples" in said  # as round 8 has it


def test_without_a_confusion_matrix_there_is_no_baseline(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "told")
    (folder / "samples.json").write_text(json.dumps(asdict(replace(SAMPLE, confusion=()))))
    assert "Always saying" not in " ".join(headline(read_story(folder)))
