"""What strangers did not understand in a report, and what it says to them now."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from deploy.report.attendance import attendance
from deploy.report.blocks import Figure, Gallery, Table
from deploy.report.costs import costs
from deploy.report.details import details
from deploy.report.exports import exports
from deploy.report.fairness import fairness
from deploy.report.headline import headline
from deploy.report.learning import learning
from deploy.report.page import make_page, render
from deploy.report.pictures import pictures
from deploy.report.reading import read_story
from deploy.report.story import Story
from server.records import Failure, Injected
from server.sample_records import Shown
from tests.told_runs import CONFIG, RECORD, SAMPLE, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "told")


def figures(blocks: tuple[object, ...]) -> dict[str, Figure]:
    return {block.title: block for block in blocks if isinstance(block, Figure)}


def changed(folder: Path, name: str, **more: object) -> Story:
    """Returns the story with other values in one of the folder's files."""
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**told, **more}))
    return read_story(folder)


def with_failures(folder: Path, *victims: int) -> Story:
    """Returns a run whose one round lost clients 4 and 7, of which these were made to fail."""
    failures = (Failure(4, "failed", "it broke."), Failure(7, "failed", "it broke."))
    injected = tuple(Injected(own, "crash", "failed") for own in victims)
    record = replace(RECORD, failures=failures, injected=injected, clients_failed=2, clients_late=0)
    (folder / "metrics.jsonl").write_text(record.to_json() + "\n")
    return read_story(folder)


def test_who_taught_the_model_and_how_few_labels_there_are_is_said(folder: Path) -> None:
    assert "have a label" not in headline(read_story(folder))[0]
    taught = {"kind": "distill", "name": "small", "student": "digits-small"}
    story = read_story(folder)
    stages = (*story.stages, replace(story.stages[-1], settings=taught))
    few = {**story.config, "data": {**story.config["data"], "labelled_fraction": 0.005}}
    said = headline(replace(story, stages=stages, config=few))[0]
    assert "digits-small, a model of 8,714 parameters that digits-cnn taught, was trained" in said
    assert "Of the examples 0.5 % have a label." in said
    nobody_reads = replace(story, config=few, model=replace(story.model, answer="values"))
    assert "have a label" not in headline(nobody_reads)[0]
    once = replace(story, stages=(replace(story.stages[0], rounds=1),))
    assert ", in 1 round of train." in headline(once)[0]


def test_what_the_model_takes_and_says(folder: Path) -> None:
    told = json.loads((folder / "manifest.json").read_text())["model"]
    shape = {"input_shape": [1, 8, 8], "answer": "classes"}
    story = changed(
        folder, "manifest.json", model={**told, **shape, "labels": ["cat", "owl", "\n"]}
    )
    said = "an example of 1 x 8 x 8 numbers and says which of 3 labels it has: cat, owl and '\\n'."
    assert said in headline(story)[1]
    many = {**told, **shape, "labels": [f"l{k}" for k in range(40)]}
    assert (
        "of 40 labels it has: l0, l1, l2, l3, l4 ..."
        in headline(changed(folder, "manifest.json", model=many))[1]
    )


def test_why_a_file_failed_its_check_is_in_the_headline(folder: Path) -> None:
    story = changed(folder, "summary.json", status="failed", reason="model-int8.tflite: failed")
    assert "model-int8.tflite (on litert 1.32.0: accuracy fell from 0.9" in headline(story)[1]


def test_what_failed_most_often_is_said_and_whether_it_was_meant(folder: Path) -> None:
    def said(*victims: int) -> str:
        return " ".join(headline(with_failures(folder, *victims)))

    assert "Most often, 2 times: failed, because it broke." in said()
    assert "on purpose" not in said()
    assert "1 of these 2 are faults that the config injects on purpose" in said(7)
    assert "All of these are faults that the config injects on purpose" in said(4, 7)


def test_the_times_add_up_to_the_whole_run(folder: Path) -> None:
    (table,) = (own for own in costs(read_story(folder)).blocks if isinstance(own, Table))
    told = {row[0]: row[1] for row in table.rows}
    assert told["rounds, one after another"] == "16 s"  # 8 rounds of 2 s
    assert told["around them: plan, sample predictions, exports"] == "59 s"
    assert told["the whole run"] == "1 min 15 s"
    assert told["in rounds: evaluate"] == "4.8 s"


def test_a_run_whose_files_failed_has_the_time_until_it_was_trained(folder: Path) -> None:
    story = changed(folder, "summary.json", status="failed", reason="model-int8.tflite: failed")
    (table,) = (own for own in costs(story).blocks if isinstance(own, Table))
    assert "the run until it was trained" in [what for what, _ in table.rows]
    assert not any("exports" in what for what, _ in table.rows)


def test_what_a_round_took_is_marked_beside_phases_that_overlap(folder: Path) -> None:
    drawn = figures(costs(read_story(folder)).blocks)["Where the seconds went"]
    marks = drawn.data[-1]
    assert (marks["mode"], marks["y"]) == ("markers", [2.0] * 8)
    assert "beside the training of the next round" in drawn.note


def test_of_many_rounds_what_they_took_is_a_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "told")
    many = [replace(RECORD, round=k + 1) for k in range(31)]
    (folder / "metrics.jsonl").write_text("".join(own.to_json() + "\n" for own in many))
    drawn = figures(costs(read_story(folder)).blocks)["Where the seconds went"]
    assert (drawn.data[-1]["mode"], drawn.data[-1]["line"]["shape"]) == ("lines", "hvh")
    assert drawn.note.startswith("The line is what a round took")


def test_the_worst_client_is_named_and_where_the_files_are(folder: Path) -> None:
    said = " ".join(headline(read_story(folder)))
    assert "Worst of all is client 0 with 0.0000." in said
    assert "See export/ in the run folder." in said


def test_digests_are_short_enough_to_be_read(folder: Path) -> None:
    story = changed(
        folder, "manifest.json", data_sha256=["a" * 64, "b" * 64], config_sha256="c" * 64
    )
    cells = {
        row[0]: row[1] for b in details(story).blocks if isinstance(b, Table) for row in b.rows
    }
    assert cells["data sha256"] == f"{'a' * 16}…, {'b' * 16}…"
    assert cells["config_sha256"] == f"{'c' * 16}…"


def test_memory_begins_at_zero_and_says_whose_it_is(folder: Path) -> None:
    drawn = figures(costs(read_story(folder)).blocks)
    memory = drawn["Memory of the process that trains and aggregates"]
    assert memory.layout["yaxis"]["rangemode"] == "tozero"
    assert "all processes of the run held together: 900 MB" in memory.note
    fleet = figures(costs(changed(folder, "manifest.json", engine="flower")).blocks)
    assert "Memory of the process that aggregates" in fleet


def test_the_loss_of_pretraining_is_in_a_figure_of_its_own(tmp_path: Path) -> None:
    config = CONFIG.replace('kind = "train"', 'kind = "pretrain"')
    story = read_story(write_run(tmp_path / "told", config=config))
    drawn = figures(learning(story).blocks)
    for title, places in (
        ("Loss of pretraining by round", range(1, 6)),
        ("Loss by round", (6, 7, 8)),
    ):
        assert [trace["x"] for trace in drawn[title].data] == [list(places)] * 2


def test_points_of_the_frontier_have_names_and_what_failed_is_crossed_out(folder: Path) -> None:
    drawn = figures(exports(read_story(folder)).blocks)
    for title in ("Accuracy over size", "Accuracy over latency"):
        onnx, tflite = drawn[title].data
        names = [own["text"] for own in drawn[title].layout["annotations"]]
        assert names == ["fp32", "int8", "int8"]
        assert onnx["marker"]["symbol"][1] == "circle"
        assert tflite["marker"]["symbol"] == ["x-thin-open"]
        assert "Crossed out: it failed its check" in drawn[title].note
    assert "One example at a time" in drawn["Accuracy over latency"].note


def test_names_of_points_that_lie_together_do_not_hide_each_other(folder: Path) -> None:
    file = json.loads((folder / "summary.json").read_text())["artefacts"][0]
    alike = [{**file, "file": f"model-alike{k}.onnx"} for k in range(6)]
    drawn = figures(exports(changed(folder, "summary.json", artefacts=alike)).blocks)
    shown = drawn["Accuracy over size"].layout["annotations"]
    assert [own["text"] for own in shown] == ["alike0", "alike1"]
    assert [own["yshift"] for own in shown] == [14, -14]


def test_a_difference_that_does_not_matter_does_not_fill_the_axis(folder: Path) -> None:
    drawn = figures(exports(read_story(folder)).blocks)["Accuracy over size"]
    low, high = drawn.layout["yaxis"]["range"]
    assert low < 0.7
    assert high > 0.9
    told = json.loads((folder / "summary.json").read_text())["artefacts"]
    alike = figures(exports(changed(folder, "summary.json", artefacts=told[:2])).blocks)
    low, high = alike["Accuracy over size"].layout["yaxis"]["range"]
    assert high - low == pytest.approx(4 * 0.01 * 0.9)


def test_it_says_what_milliseconds_are_of(folder: Path) -> None:
    tables = [own for own in exports(read_story(folder)).blocks if isinstance(own, Table)]
    assert (
        "ms: for one example at a time, in one thread of the machine that exported"
        in tables[0].note
    )


def test_the_heat_map_of_labels_has_a_scale_from_zero_with_a_name(folder: Path) -> None:
    drawn = figures(fairness(read_story(folder)).blocks)["Who has which labels"]
    (heat,) = drawn.data
    assert (heat["zmin"], heat["zmax"]) == (0, 0.9)
    assert heat["colorbar"]["title"]["text"] == "of a client's examples"


def test_curves_say_what_they_are(folder: Path) -> None:
    wave = tuple(tuple(float(k + step) for step in range(5)) for k in range(8))
    shown = replace(
        SAMPLE, answer="values", shown=(Shown(series=wave, series_made=wave),), wrong=()
    )
    (folder / "samples.json").write_text(json.dumps(asdict(shown)))
    (gallery,) = (b for b in pictures(read_story(folder)).blocks if isinstance(b, Gallery))
    assert "a channel of the input over 5 time steps" in gallery.note
    assert "1 blue, 2 orange, 3 green, 4 purple, 5 ochre, 6 grey" in gallery.note
    assert "the other 2 are not drawn" in gallery.note
    assert "Dashed: what the model makes of the solid one." in gallery.note


@pytest.mark.parametrize("runs", [1, 2])
def test_the_words_are_explained_once_a_page(tmp_path: Path, runs: int) -> None:
    stories = [read_story(write_run(tmp_path / f"run-{k}")) for k in range(runs)]
    html = render(make_page(stories, "now"))
    assert html.count("<summary>The words of this report</summary>") == 1


def test_every_fate_of_a_client_is_among_the_words(folder: Path) -> None:
    html = render(make_page([read_story(folder)], "now"))
    (chart,) = (own for own in attendance(read_story(folder)).blocks if isinstance(own, Figure))
    words = html[html.index("The words of this report") :]
    assert all(trace["name"] in words for trace in chart.data)


def test_cards_are_in_even_rows(folder: Path) -> None:
    html = render(make_page([read_story(folder)], "now"))
    assert 'class="cards" style="--count: 6; --half: 3"' in html
