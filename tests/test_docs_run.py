"""Pages that are done from top to bottom, each in a folder of its own; notebooks; the site."""

from __future__ import annotations

import html.parser
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbclient import NotebookClient

from deploy.metrics import catalog
from tests.conftest import ROOT
from tests.documents import blocks, done, files_of

pytestmark = pytest.mark.slow
PAGES = ("docs/tutorial.md", "docs/how-to/own-data.md")


def do(page: str, folder: Path) -> dict[str, str]:
    """Does all that a page says; returns what its commands printed."""
    doc, told = ROOT / page, {}
    for name, text in files_of(doc).items():
        (folder / name).write_text(text)
    for command in (command for block in blocks(doc) for command in block.commands):
        found = done(folder, command)
        assert (found.returncode, found.stderr) == (0, ""), f"{command}\n{found.stderr}"
        told[command] = found.stdout
    return told


def summary(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return found


def accuracy(folder: Path) -> float:
    return float(summary(folder)["stages"][0]["eval"]["accuracy"])  # type: ignore[index]


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    told = do("docs/tutorial.md", tmp_path)
    assert len(told) == 10
    assert accuracy(tmp_path / "first") > 0.85
    assert accuracy(tmp_path / "robust") > accuracy(tmp_path / "attacked") + 0.1
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "first/export").glob("*.onnx")}
    assert sizes["model-int8.onnx"] < sizes["model-fp32.onnx"]
    assert (tmp_path / "both.html").exists()


def test_own_data_are_trained_on_as_the_page_says(tmp_path: Path) -> None:
    do("docs/how-to/own-data.md", tmp_path)
    assert summary(tmp_path / "own")["clients"] == 6
    assert accuracy(tmp_path / "own") > 0.9


def test_run_folders_have_what_their_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/reference/run-folder.md").read_text()
    named = set(re.findall(r"(?m)^\| `([^`]+)`", page))
    (tmp_path / "run.toml").write_text(files_of(ROOT / "docs/tutorial.md")["digits.toml"])
    assert done(tmp_path, "wildflower simulate run.toml --out run").returncode == 0
    assert done(tmp_path, "wildflower report run").returncode == 0
    for path in (tmp_path / "run").iterdir():
        name = f"{path.name}/" if path.is_dir() else path.name
        assert name in named or name == "train.safetensors", name
    assert all(f"`{key}`" in page for key in summary(tmp_path / "run"))


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([programs, os.environ["PATH"]]))
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    assert all(cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code")


class Anchors(html.parser.HTMLParser):
    """Collects where a page leads to, and the places in it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.ids.add(told.get("id") or "")
        link = told.get("href" if tag in ("a", "link") else "src")
        if link:
            self.links.append(link)
        if link and tag != "a" and told.get("rel") != "canonical":
            self.loads.append(link)


def test_the_site_is_made_without_a_warning_and_leads_nowhere_else(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    made = subprocess.run(
        [*command, "--site-dir", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "WARNING" not in made.stderr
    for page in tmp_path.rglob("*.html"):
        found = Anchors()
        found.feed(page.read_text())
        assert not [link for link in found.loads if link.startswith(("http", "//"))]
        for link in found.links:
            place = unquote(link.split("#")[0].split("?")[0])
            if ":" in place or page.name == "404.html":
                continue
            assert not place or (page.parent / place).exists(), f"{page}: {link}"
    assert catalog.ROUNDS.name in (tmp_path / "metrics.html").read_text()
    assert "--metrics-port" in (tmp_path / "reference/commands.html").read_text()
