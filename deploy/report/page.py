"""From stories to one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.report.attendance import attendance
from deploy.report.blocks import Chapter, Figure, Page
from deploy.report.comparison import comparison
from deploy.report.costs import costs
from deploy.report.details import details
from deploy.report.exports import exports
from deploy.report.fairness import fairness
from deploy.report.findings import failed_gates
from deploy.report.glossary import glossary
from deploy.report.headline import cards, headline, status
from deploy.report.learning import learning
from deploy.report.pictures import pictures
from deploy.report.reading import read_story
from deploy.report.story import Story
from deploy.report.words import plural
from shared_models.files import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT = "report.html"
_PARTS = (learning, fairness, pictures, attendance, exports, costs, details)
_TONES = {"done": "good", "trained": "good", "failed": "bad", "unfinished": "bad"}


@dataclass(frozen=True)
class Live:
    """That a page is served and asks for news every `every_s` seconds."""

    every_s: float


def write_report(runs: Sequence[Path], path: Path) -> None:
    """Writes the report of run folders, in this order, a run that is named twice once.

    Raises `InputError` for a folder that is none of a run.
    """
    unique = {run.resolve(): run for run in runs}.values()
    made = time.strftime("Made %Y-%m-%d %H:%M UTC", time.gmtime())
    page = make_page([read_story(run) for run in unique], made)
    write_atomic(path, render(page).encode())


def make_page(stories: Sequence[Story], made: str) -> Page:
    """Returns what is to be told of runs; of several, first what there is to say of all.

    `made` says when.
    """
    own = tuple(chapter(story, place) for place, story in enumerate(stories))
    first, *rest = own if len(own) == 1 else (comparison(stories), *own)
    explained = replace(first, sections=(*first.sections, glossary()))
    return Page(first.title, (explained, *rest), made)


def chapter(story: Story, place: int = 0) -> Chapter:
    """Returns what is to be told of one run."""
    tone: Any = "plain" if failed_gates(story) else _TONES.get(story.status, "plain")
    sections = tuple(part(story) for part in _PARTS)
    name = f"run-{place + 1}"
    title = story.name
    return Chapter(name, title, status(story), tone, headline(story), cards(story), sections)


def render(page: Page, live: Live | None = None) -> str:
    """Returns a page as HTML; all that comes from a run is escaped."""
    script, plotly, style = _text("page.js"), _plotly(), _text("page.css")
    template = _environment().get_template("page.html")
    return template.render(
        page=page,
        live=live,
        policy=_policy([plotly, script], live),
        style=style,
        plotly=plotly,
        script=script,
    )


def render_content(page: Page) -> str:
    """Returns what of a page changes while a run goes on."""
    return _environment().get_template("content.html").render(page=page)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("deploy.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["figure"] = figure_json
    made.filters["plural"] = plural
    return made


def figure_json(figure: Figure) -> str:
    """Returns a figure as JSON that no text in it can break out of."""
    text = json.dumps({"data": figure.data, "layout": figure.layout}, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _text(name: str) -> str:
    return resources.files("deploy.report").joinpath("templates", name).read_text()


def _plotly() -> str:
    """Returns plotly's script as the package ships it."""
    text = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text()
    return text.replace("\r\n", "\n")


def _policy(scripts: Sequence[str], live: Live | None) -> str:
    """Returns what the browser may do: run these very scripts, draw, and reach nothing."""
    digests = [hashlib.sha256(text.encode()).digest() for text in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(own).decode()}'" for own in digests)
    reach = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {reach}; base-uri 'none'; form-action 'none'"
    )
