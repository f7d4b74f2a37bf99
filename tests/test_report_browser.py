"""A report in a real browser: drawn, silent, legible, the same for everybody.

Screenshots are kept in build/screenshots. Where there is no browser the tests are skipped, and say
what is missing.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from deploy.cli.live import listener
from deploy.report.live import Served, make_app, server_of
from deploy.report.page import write_report
from deploy.report.reading import read_story
from tests.told_runs import CONFIG, records, write_run

pytestmark = pytest.mark.slow

SHOTS = Path(__file__).parent.parent / "build" / "screenshots"
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
HOSTILE = "</script><img src=x onerror=window.hurt=1><b>bold</b>"
VIEWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
    "phone-dark": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
}
# Text that is too faint: WCAG 2.2, 1.4.3 (AA), against the nearest ground that is not transparent.
FAINT = """() => {
  const UNSEEN = "script, style, noscript, .heatmaplayer, .skip";
  const parts = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const light = (rgb) => {
    const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (node) => {
    for (let own = node; own; own = own.parentElement) {
      const found = parts(getComputedStyle(own).backgroundColor);
      if (found.a > .5) return found.rgb;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim());
    const box = node.getBoundingClientRect();
    if (!own || !box.width || node.closest(UNSEEN)) continue;
    const style = getComputedStyle(node);
    const colour = parts(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(colour.rgb), light(ground(node))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${node.textContent.trim().slice(0, 40)}`);
  }
  return faint;
}"""
# Figures that are not drawn, or without words, or wider than their place.
BAD_FIGURES = """() => [...document.querySelectorAll(".plot")].filter((plot) => {
  const told = JSON.parse(plot.querySelector("script").textContent);
  const marks = plot.querySelectorAll(".trace, .hm image, .point path").length;
  const box = plot.querySelector(".main-svg")?.getBoundingClientRect();
  const whole = box && box.width > 200 && box.height > 100 && box.right <= innerWidth;
  const words = plot.getAttribute("role") === "img" && plot.getAttribute("aria-label").length > 20;
  const drawn = marks >= told.data.length && plot._fullData.length === told.data.length;
  return !(whole && words && drawn);
}).map((plot) => plot.id)"""
# What stands beside the first line of a page that gets no answer any more.
MARK = "getComputedStyle(document.querySelector('.eyebrow'), '::after').content"
SKIPPED_LEVELS = """() => {
  const headings = [...document.querySelectorAll("h1, h2, h3, h4, h5")];
  const levels = headings.map((heading) => Number(heading.tagName[1]));
  return levels.filter((level, place) => place ? level > levels[place - 1] + 1 : level !== 1);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        if not found and not Path(playwright.chromium.executable_path).exists():
            pytest.skip(
                f"NO BROWSER: none of {', '.join(NAMES)} is installed; "
                "apt-get install chromium-headless-shell, or playwright install chromium"
            )
        with closing(playwright.chromium.launch(executable_path=found, args=arguments)) as own:
            yield own


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs, one of which has hostile words wherever a stranger can put some."""
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "told")
    write_run(folder / "hostile", config=CONFIG.replace('"tune"', f"'{HOSTILE}'"))
    for path in (folder / "hostile").rglob("*.json*"):
        text = path.read_text()
        for word in ("cat", "delta.head.weight", "sensor", "2.13.0", '"tune'):
            text = text.replace(word, word + HOSTILE)
        path.write_text(text)
    write_report([folder / "told", folder / "hostile"], folder / "report.html")
    return folder / "report.html"


class Visit:
    """A page that is open, and all that it said and asked for."""

    def __init__(self, browser: Browser, url: str, view: dict[str, Any]) -> None:
        self.page: Page = browser.new_page(**view)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.until("document.documentElement.dataset.drawn")

    def open_all(self) -> None:
        """Opens what of a comparison is folded, as a reader does, and waits for its plots."""
        self.page.evaluate("document.querySelectorAll('.part').forEach((one) => one.open = true)")
        self.until("[...document.querySelectorAll('.plot')].every((plot) => plot._fullLayout)")

    def until(self, expression: str, patience_s: float = 90.0) -> None:
        """Waits for something to be true; the page's policy keeps the browser from doing so."""
        deadline = time.monotonic() + patience_s
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(50)

    def close(self) -> None:
        self.page.close()


@pytest.mark.parametrize("view", VIEWS)
def test_every_figure_is_drawn_and_everything_can_be_read(
    browser: Browser, report: Path, view: str
) -> None:
    with closing(Visit(browser, report.as_uri(), VIEWS[view])) as visit:
        page = visit.page
        visit.open_all()
        page.screenshot(path=SHOTS / f"{view}.png", full_page=True)
        assert page.locator(".plot").count() > 20
        assert page.evaluate(BAD_FIGURES) == []
        assert page.evaluate(FAINT) == []
        assert page.evaluate(SKIPPED_LEVELS) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("img:not([alt]), img[alt='']").count() == 0
        assert visit.said == []
        assert [url for url in visit.asked if not url.startswith("data:")] == [report.as_uri()]


def test_of_a_comparison_the_runs_are_folded_until_somebody_asks(
    browser: Browser, report: Path
) -> None:
    shown = (
        "[...document.querySelectorAll('.part')].filter((part) => part.open).map((own) => own.id)"
    )
    with closing(Visit(browser, report.as_uri(), VIEWS["light"])) as visit:
        page = visit.page
        assert page.evaluate(shown) == []
        assert page.evaluate("document.documentElement.scrollHeight") < 6000
        assert page.locator(".plot .main-svg").count() >= page.locator(".plot").count() > 0
        costs = "document.querySelector('#run-1-costs .plot').checkVisibility()"
        assert not page.evaluate(costs)
        page.locator("#run-1 nav a", has_text="What did it cost?").click()
        visit.until(costs)
        assert page.evaluate(shown) == ["run-1-costs-part"]
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert len(page.evaluate(shown)) == page.locator(".part").count()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(shown) == ["run-1-costs-part"]


def test_hostile_words_are_only_words(browser: Browser, report: Path) -> None:
    with closing(Visit(browser, report.as_uri(), VIEWS["light"])) as visit:
        visit.open_all()
        assert visit.page.evaluate("window.hurt") is None
        assert visit.page.locator("img[src='x'], main b").count() == 0
        assert visit.page.locator("td", has_text=HOSTILE).count() > 0
        labels = visit.page.locator(".plot .xtick text").all_text_contents()
        assert any(HOSTILE in label for label in labels)


def test_the_scheme_of_the_screen_is_followed_and_paper_is_white(
    browser: Browser, report: Path
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('.plot .js-line')).stroke"
    with closing(Visit(browser, report.as_uri(), VIEWS["light"])) as visit:
        page = visit.page
        light = page.evaluate(ground), page.evaluate(line)
        page.emulate_media(color_scheme="dark")
        visit.until(f"{line} !== {light[1]!r}")
        assert page.evaluate(ground) != light[0]
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        visit.until(f"{line} === {light[1]!r}")
        assert page.evaluate(ground) == light[0]
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        visit.until(f"{line} !== {light[1]!r}")
        page.pdf(path=SHOTS / "paper.pdf", print_background=True)
        assert (SHOTS / "paper.pdf").stat().st_size > 50_000


def test_a_live_page_follows_the_run_without_being_loaded_anew(
    browser: Browser, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "told", rounds=3)
    app = make_app(lambda: [read_story(folder)], Served(every_s=0.5))
    with closing(listener("127.0.0.1", 0)) as own:
        server = server_of(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [own]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{own.getsockname()[1]}/"
            with closing(Visit(browser, url, VIEWS["light"])) as visit:
                visit.page.evaluate("window.same = true")
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(records()[3].to_json() + "\n")
                visit.until("document.body.innerText.includes('4 of 5 rounds of train')")
                visit.until(f"({BAD_FIGURES})().length === 0")
                assert visit.page.evaluate("window.same")
                assert visit.said == []
                assert visit.page.evaluate(MARK) == "none"
                server.should_exit = True
                thread.join(timeout=30)
                visit.until(f"({MARK}).includes('may be old')")
        finally:
            server.should_exit = True
            thread.join(timeout=30)
