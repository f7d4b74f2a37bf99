"""`wildflower compare`: the frontier is what no other file beats."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cli import run
from deploy.edge.artefact import load_artefact, save_artefact
from deploy.edge.reference import FILE, load_reference, save_reference
from deploy.frontier import Point, points_of, save_plot, warnings_of
from shared_models.errors import InputError
from tests.conftest import DIGITS

EXPORT = '\n[[stages]]\nkind = "export"\nformats = ["onnx"]\nlatency_runs = 5\n'
POINT = Point("a", "f", "t", "none", "r", 10, 1000, 1.0, "accuracy", 0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits run with two files."""
    path = tmp_path_factory.mktemp("compare")
    (path / "digits.toml").write_text(DIGITS.replace("rounds = 4", "rounds = 8") + EXPORT)
    assert run(["simulate", str(path / "digits.toml"), "--out", str(path / "run")]) == 0
    return path / "run"


def test_what_is_as_good_and_better_in_one_beats() -> None:
    smaller = replace(POINT, size_bytes=999)
    assert smaller.beats(POINT)
    assert not POINT.beats(smaller)
    assert not POINT.beats(POINT)
    assert not replace(smaller, median_ms=1.1).beats(POINT)
    assert not replace(smaller, score=0.89).beats(POINT)


def test_the_table_tells_each_file_and_the_frontier(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    capsys.readouterr()
    # A run that is named twice is there once.
    assert run(["compare", str(folder), str(other), str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in told] == ["model-fp32.onnx", "model-int8.onnx"] * 2
    assert any(one["frontier"] for one in told)
    summary = json.loads((folder / "summary.json").read_text())
    assert told[0]["size_bytes"] == summary["artefacts"][0]["size_bytes"]
    assert run(["compare", str(folder)]) == 0
    assert "* run model-int8.onnx" in " ".join(capsys.readouterr().out.split())


def test_a_file_that_failed_its_gate_beats_nobody(folder: Path, tmp_path: Path) -> None:
    failed = Path(shutil.copytree(folder, tmp_path / "failed"))
    good = load_artefact(failed / "export" / "model-int8.onnx")
    save_artefact(failed / "export", replace(good, passed=False, size_bytes=1))
    points = {point.file: point for point in points_of([failed])}
    assert not points["model-int8.onnx"].frontier
    assert points["model-fp32.onnx"].frontier


def test_what_else_makes_figures_differ_is_warned_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    assert warnings_of([folder, other]) == []
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["machine"]["cores"] += 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    reference = load_reference(other / "export" / FILE)
    save_reference(other / "export" / FILE, replace(reference, outputs=reference.outputs + 1))
    assert len(warnings_of([folder, other])) == 1  # what torch says is no other example
    save_reference(other / "export" / FILE, replace(reference, x=reference.x + 1))
    capsys.readouterr()
    assert run(["compare", str(folder), str(other)]) == 0
    machines, examples = capsys.readouterr().err.strip().splitlines()
    assert machines == (
        f"warning: {folder} and {other} were made on other machines: "
        "their latencies are not comparable"
    )
    assert "were measured on other test examples" in examples


def test_a_plot_has_the_same_bytes_each_time(folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    for path in (one, two):
        save_plot(points_of([folder]), path)
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(InputError, match=r"must end in \.svg"):
        save_plot([POINT], tmp_path / "one.png")


def test_a_run_without_files_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("config.toml", "manifest.json"):
        (tmp_path / "run" / name).write_bytes((folder / name).read_bytes())
    summary = json.loads((folder / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(json.dumps({**summary, "artefacts": []}))
    with pytest.raises(InputError, match="has no artefacts; make some with"):
        points_of([tmp_path / "run"])
