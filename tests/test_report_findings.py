"""What a report says beyond its numbers: is the model any good, and was it better before."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from deploy.report.attendance import attendance
from deploy.report.blocks import Figure, Note, Table
from deploy.report.comparison import comparison
from deploy.report.costs import costs
from deploy.report.exports import exports
from deploy.report.fairness import fairness
from deploy.report.findings import better_before, failed_gates, final_value, is_useless
from deploy.report.headline import cards, headline, status
from deploy.report.learning import parts_of
from deploy.report.reading import read_story
from deploy.report.story import Story, value_of
from server.records import Best, Failure, RoundRecord
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


def test_what_a_run_began_with_is_told(tmp_path: Path) -> None:
    story = told(tmp_path, 0.5)
    assert "beginning with" not in headline(story)[0]
    begun = replace(story, config={**story.config, "init": "runs/a/train.safetensors"})
    assert "of tune, beginning with the weights in runs/a/train.safetensors." in headline(begun)[0]


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


def test_who_was_not_needed_is_surplus_and_no_loss_and_all_sums_agree(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "told")
    more = [replace(own, clients_selected=13, clients_late=4) for own in records()]
    write_records(folder, more)
    story = read_story(folder)
    said = " ".join(headline(story))
    assert "16 of 80 (20 %) updates that were needed did not count: 8 refused and 8 late" in said
    assert "24 more were surplus" in said
    blocks = attendance(story).blocks
    (chart,) = (block for block in blocks if isinstance(block, Figure))
    sums = {trace["name"]: sum(trace["y"]) for trace in chart.data}
    assert sums == {"aggregated": 64, "refused": 8, "late": 8, "surplus": 24}
    (why, *_) = (block for block in blocks if isinstance(block, Table))
    assert [(row[0], row[2]) for row in why.rows] == [
        ("refused", "8"),
        ("late", "8"),
        ("surplus", "24"),
    ]


def test_reasons_that_differ_in_numbers_are_one_row_with_their_range(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "told")
    late = [Failure(3, "late", f"it took {k}0.5 s (# of 30)") for k in range(8)]
    pairs = zip(records(), late, strict=True)
    odd = Failure(4, "late", "it took # s (# of 30)")
    write_records(folder, [replace(own, failures=(why, odd)) for own, why in pairs])
    why = next(b for b in attendance(read_story(folder)).blocks if isinstance(b, Table))
    assert ("late", "it took 00.5 to 70.5 s (# of 30)", "8") in why.rows


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("inline", "exchanged with the simulated workers, a block at a time"),
        ("flower", "on the wire"),
    ],
)
def test_bytes_are_on_the_wire_only_where_there_is_one(
    tmp_path: Path, engine: str, said: str
) -> None:
    folder = write_run(tmp_path / "told")
    told = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**told, "engine": engine}))
    story = read_story(folder)
    assert any(said in card.note for card in cards(story))
    (table,) = (block for block in costs(story).blocks if isinstance(block, Table))
    one = "34.9 KB (8,714 parameters x 4 bytes)" if engine == "inline" else "10.0 KB"
    assert one in [row[1] for row in table.rows]


def test_what_a_file_to_ship_costs_and_saves_is_said(tmp_path: Path) -> None:
    said = [
        getattr(b, "text", "") for b in exports(read_story(write_run(tmp_path / "told"))).blocks
    ]
    assert "the smallest file that passed its check" in said[0]
    assert "against model-fp32.onnx it is 70 % smaller, and no worse" in said[1]


def test_of_many_labels_the_most_frequent_are_drawn_and_none_that_is_empty(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "told")
    counts = tuple(tuple(50 - j for j in range(40)) if i < 20 else (0,) * 40 for i in range(40))
    many = replace(SAMPLE, confusion=counts, labels=tuple(f"l{k}" for k in range(40)))
    (folder / "samples.json").write_text(json.dumps(asdict(many)))
    drawn = [b for b in fairness(read_story(folder)).blocks if isinstance(b, Figure)]
    (matrix,) = (figure for figure in drawn if figure.title == "What is taken for what")
    assert matrix.data[0]["x"] == [f"l{k}" for k in range(15)]
    assert "Of 40 labels the 15 most frequent are shown" in matrix.note
    never = tuple(tuple(9 * (i != j) for j in range(3)) for i in range(3))
    (folder / "samples.json").write_text(json.dumps(asdict(replace(SAMPLE, confusion=never))))
    blocks = fairness(read_story(folder)).blocks
    assert not any(b.title.startswith("Labels") for b in blocks if isinstance(b, Figure))
    assert any("never finds" in b.text for b in blocks if isinstance(b, Note))


def test_a_line_has_a_gap_where_a_measurement_is_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "told")
    gone = [replace(r, eval=None, clients_eval=None) if r.round == 2 else r for r in records()]
    write_records(folder, gone)
    story = read_story(folder)
    assert parts_of(story, [value_of(r, "accuracy") for r in story.records]) == [
        *(1, 1, 2, 2, 2),  # of stage train, whose second round is missing
        *(3, 3, 4),
    ]
    every = folder / "config.toml"
    every.write_text(every.read_text().replace("[evaluate]", "[evaluate]\nevery = 2"))
    story = read_story(folder)
    assert parts_of(story, [value_of(r, "accuracy") for r in story.records])[4] == 1


def test_keys_that_only_one_run_has_are_folded(tmp_path: Path) -> None:
    config = CONFIG.replace("seed = 3", "seed = 4\nkeep_checkpoints = 2")
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", config=config)
    together = comparison([read_story(one), read_story(two)])
    (section,) = (own for own in together.sections if own.name == "differences")
    shown, rest = (block for block in section.blocks if isinstance(block, Table))
    assert (shown.rows, shown.folded) == ((("seed", "3", "4"),), False)
    assert (rest.rows, rest.folded) == ((("keep_checkpoints", "-", "2"),), True)


def test_of_a_distance_is_said_that_less_is_better_and_that_it_has_no_scale(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "told")
    far = [replace(own, eval={"frechet_distance": 500.0}, clients_eval=None) for own in records()]
    write_records(folder, far)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"] |= {"metrics": ["frechet_distance"], "costs": ["frechet_distance"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    said = " ".join(headline(read_story(folder)))
    assert "a Fréchet distance of 500; less is better" in said
    assert "no scale says what is good" in said
