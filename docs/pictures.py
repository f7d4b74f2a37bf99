"""Pictures for the README, of a real run: `make pictures`; needs a browser (docs/report.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, TypeAlias

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
EXAMPLE = ROOT / "examples" / "pipeline-watch.toml"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# As wide as a README is shown, as tall as the first figures.
WIDTH, HEIGHT, PIXELS = 1000, 1180, 1.5


Scheme: TypeAlias = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def main() -> None:
    """Runs the example and takes the top of its report, light and dark."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        run = Path(folder) / "watch"
        own = ("--out", str(run), "-s", "evaluate.clients_fraction=1.0", "-s", 'name="watch"')
        command = [sys.executable, "-m", "deploy", "simulate", str(EXAMPLE), *own]
        subprocess.run(command, check=True, cwd=ROOT)
        for scheme in SCHEMES:
            take(run / "report.html", scheme, IMAGES / f"report-{scheme}.png")


def take(report: Path, scheme: Scheme, picture: Path) -> None:
    """Takes what is seen first of a report."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        page = browser.new_page(
            color_scheme=scheme,
            viewport={"width": WIDTH, "height": HEIGHT},
            device_scale_factor=PIXELS,
        )
        page.goto(report.as_uri())
        while not page.evaluate("document.documentElement.dataset.drawn"):
            page.wait_for_timeout(50)
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main()
