"""Reports: what a run folder tells, no more and no less, whatever is in it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from deploy.cli import run
from deploy.report.blocks import Chapter, Figure, Note, Table
from deploy.report.closing import reported
from deploy.report.exports import picks
from deploy.report.page import chapter, figure_json, make_page, render, render_content
from deploy.report.partition import PARTITION
from deploy.report.reading import read_story
from server.run_folder import RunFolder
from shared_models.errors import InputError, RoundError
from tests.told_runs import BROKEN, CONFIG, FILE, RECORD, SMALL, records, write_run
from tests.verbs import refused, told

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run with failures, unfair to some clients, with three files."""
    return write_run(tmp_path / "told")


def words_of(own: Chapter) -> str:
    """Returns all that a chapter says, outside of its plots."""
    blocks = [block for section in own.sections for block in section.blocks]
    notes = [block.text for block in blocks if isinstance(block, Note)]
    cells = [c for block in blocks if isinstance(block, Table) for row in block.rows for c in row]
    return "\n".join([*own.headline, *notes, *cells])


def figures_of(own: Chapter) -> dict[str, Figure]:
    blocks = [block for section in own.sections for block in section.blocks]
    return {block.title: block for block in blocks if isinstance(block, Figure)}


def test_the_headline_tells_how_well_on_whom_badly_what_failed_and_what_to_ship(
    folder: Path,
) -> None:
    said = " ".join(chapter(read_story(folder)).headline)
    assert "digits-cnn, a model of 8,714 parameters, was trained on digits by 20 clients" in said
    assert "5 rounds of train and 3 rounds of tune" in said
    assert "accuracy of 0.8500" in said
    # The worst tenth of 19 clients are two: those with 0 and 0.05.
    assert "0.0250 for the tenth whom it serves worst" in said
    assert "16 of 80 (20 %) updates" in said
    assert "8 refused and 8 late" in said
    assert "To ship: model-int8.onnx for ONNX Runtime." in said


def test_every_failure_is_there_with_its_reason_and_what_was_injected(folder: Path) -> None:
    own = chapter(read_story(folder))
    said, tables = (
        words_of(own),
        [t for s in own.sections for t in s.blocks if isinstance(t, Table)],
    )
    (every,) = (table.rows for table in tables if table.caption == "Every failure (16)")
    assert every[0] == ("train", "1", "client 7", "refused", RECORD.failures[0].reason, "nan")
    assert [row[4:] for row in every] == 8 * [
        (f.reason, n) for f, n in zip(RECORD.failures, ("nan", ""), strict=True)
    ]
    assert "RuntimeError: the sensor is offline" in said
    assert "model-int8.tflite failed: on litert 1.32.0: accuracy fell from 0.9000 to 0.7000" in said


def test_curves_go_on_from_stage_to_stage(folder: Path) -> None:
    figure = figures_of(chapter(read_story(folder)))["Accuracy by round"]
    told = [record.eval["accuracy"] for record in records() if record.eval]
    assert figure.data[0]["x"] == [1, 2, 3, 4, 5, None, 6, 7, 8]
    assert figure.data[0]["y"] == [*told[:5], None, *told[5:]]
    assert [mark["text"] for mark in figure.layout["annotations"]] == ["train", "tune"]
    assert "0.8500 after round 8" in figure.alt


def test_of_what_less_is_better_the_best_is_the_least(folder: Path) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    values["model"]["costs"] = ["accuracy", "loss"]
    (folder / "manifest.json").write_text(json.dumps(values))
    own = chapter(read_story(folder))
    assert "0.8750 for the tenth" in " ".join(own.headline)
    assert "best 0.5000 after round 1" in figures_of(own)["Accuracy by round"].alt


@pytest.mark.parametrize(
    ("files", "ship"),
    [
        ((FILE, SMALL, BROKEN), ["model-int8.onnx"]),
        ((BROKEN,), []),
        ((FILE, replace(SMALL, stream=True)), ["model-fp32.onnx"]),
        ((replace(SMALL, stream=True),), ["model-int8.onnx"]),
        ((FILE, replace(BROKEN, passed=True)), ["model-fp32.onnx", "model-int8.tflite"]),
    ],
)
def test_the_smallest_file_that_passed_is_shipped_for_each_runtime(
    files: tuple[object, ...], ship: list[str]
) -> None:
    assert [pick.file.file for pick in picks(files)] == ship  # type: ignore[arg-type]


def test_a_report_can_be_made_while_the_run_goes_on(tmp_path: Path) -> None:
    path = write_run(tmp_path / "told", rounds=3)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "rou')
    assert read_story(path).status == "unfinished"
    with RunFolder(path).held():
        story = read_story(path)
    assert (story.status, len(story.records), story.notes) == ("running", 3, ())
    assert "is being trained" in chapter(story).headline[0]
    assert "3 of 5 rounds of train" in chapter(story).headline[0]


def test_before_its_first_round_a_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    page = make_page([read_story(tmp_path)], "now")
    assert "No round has finished yet." in render_content(page)


def test_what_was_not_recorded_is_said(folder: Path) -> None:
    for name in (PARTITION, "samples.json", "manifest.json", "summary.json"):
        (folder / name).unlink()
    lines = [replace(record, clients_eval=None).to_json() for record in records()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    said = words_of(chapter(read_story(folder)))
    for missing in ("clients_fraction = 1.0", "who has which labels", "sample predictions"):
        assert missing in said
    assert "No file was exported" in said
    assert "versions and machine" in said


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "manifest.json", "summary.json", PARTITION, "samples.json"]
)
@pytest.mark.parametrize("content", ["[1]\n", '{"counts": [[1]]}\n', "\x00\xff\n", '{"a": NaN}\n'])
def test_a_damaged_file_is_told_and_the_rest_is_shown(
    folder: Path, name: str, content: str
) -> None:
    (folder / name).write_text(content)
    page = make_page([story := read_story(folder)], "now")
    assert render_content(page)
    if name not in {"manifest.json", "summary.json"} or not content.startswith("{"):
        assert any(note.startswith(name) for note in story.notes)


def test_a_config_that_is_none_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "not a run folder" in refused(capsys, "report", str(tmp_path))
    for text in ("stages = 3", "data = 1\nstages = []", "a = [", "stages = [1]"):
        (tmp_path / "config.toml").write_text(text)
        assert "config.toml" in refused(capsys, "report", str(tmp_path))


def test_nothing_in_a_run_becomes_markup(folder: Path) -> None:
    for path in folder.rglob("*.json*"):
        text = path.read_text()
        for word in ("cat", "delta.head.weight", "sensor", "model-int8.onnx", "2.13.0", 'nan"'):
            text = text.replace(word, HOSTILE + word)
        path.write_text(text)
    config = CONFIG.replace('"told"', f"'{HOSTILE}'").replace('"tune"', f"'{HOSTILE}'")
    (folder / "config.toml").write_text(config)
    html = render(make_page([read_story(folder)], "now"))
    assert "onerror" in html
    assert HOSTILE not in html
    assert "<img src=x" not in html


def test_text_in_a_plot_is_what_it_was() -> None:
    figure = Figure("t", "a", [{"name": "</script><!-- \u2028 &"}])
    text = figure_json(figure)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["data"][0]["name"] == "</script><!-- \u2028 &"


def test_a_page_needs_nothing_else_and_is_small(folder: Path) -> None:
    html = render(make_page([read_story(folder)], "now"))
    assert len(html.encode()) < 6_000_000
    assert "default-src 'none'" in unescape(html)
    assert "connect-src 'none'" in unescape(html)
    assert html == render(make_page([read_story(folder)], "now"))


def test_several_runs_are_held_against_each_other(folder: Path, tmp_path: Path) -> None:
    config = CONFIG.replace("local_learning_rate = 0.1", "local_learning_rate = 0.3")
    other = write_run(tmp_path / "other", config=config)
    page = make_page([read_story(folder), read_story(other)], "now")
    together = page.chapters[0]
    assert [own.title for own in page.chapters] == ["2 runs side by side", "told", "other"]
    (differences,) = (s for s in together.sections if s.name == "differences")
    (table,) = differences.blocks
    assert isinstance(table, Table)
    assert table.rows == (("stages.train.local_learning_rate", "0.1", "0.3"),)
    assert not table.folded
    assert len(figures_of(together)["Accuracy by round"].data) == 2


def test_the_verb_writes_into_the_folder_and_a_run_named_twice_is_there_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = told(capsys, "report", str(folder))
    assert answer == {"report": str(folder / "report.html"), "bytes": answer["bytes"]}
    out = tmp_path / "twice.html"
    assert run(["report", str(folder), str(folder), "--out", str(out)]) == 0
    assert "side by side" not in out.read_text()
    assert "folder" in refused(capsys, "report", str(folder), "--out", str(tmp_path))


def test_a_run_that_fails_has_a_report_that_says_why(tmp_path: Path) -> None:
    path = write_run(tmp_path / "told", rounds=3)
    with pytest.raises(RoundError), reported(path):
        raise RoundError("stage 'train', round 4: 3 of 10 clients answered")
    assert read_story(path).status == "failed"
    assert "3 of 10 clients answered" in (path / "report.html").read_text()
    with reported(path):  # it was gone on with, and went well
        pass
    assert read_story(path).status == "unfinished"


def test_a_report_that_fails_ends_no_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "report.html").mkdir()
    with reported(folder):
        pass
    assert "no report" in capsys.readouterr().err


def test_there_is_no_report_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError), reported(tmp_path / "nothing"):
        raise InputError("wrong")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_a_report_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from deploy.report.page import write_report; "
        f"write_report([Path({str(folder)!r})], Path({str(folder / 'r.html')!r})); "
        "sys.exit(bool({'torch', 'flwr', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
