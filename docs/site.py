"""What makes a site of these pages: pages from the code, and links that lead out of the folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from deploy.reference import commands, configs, examples

ROOT = Path(__file__).parent.parent
KUBERNETES = "how-to/kubernetes.md"
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def generated() -> dict[str, str]:
    """Returns the pages that are made from the code and from files elsewhere."""
    made = {"reference/commands.md": commands.page(), "reference/config.md": configs.page()}
    made |= {f"examples/{name}": text for name, text in examples.pages(ROOT / "examples").items()}
    outside = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
    outside[KUBERNETES] = "k8s/README.md"
    return made | {page: (ROOT / file).read_text() for page, file in outside.items()}


def on_config(config: Any) -> Any:
    """Lists the pages of the examples."""
    names = sorted(path.stem for path in (ROOT / "examples").glob("*.toml"))
    for part in config.nav:
        part.get("Examples", []).extend(f"examples/{name}.md" for name in names)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are not files of this folder."""
    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mends links that lead to files outside of the site: to their page, or to their name."""
    here = Path("docs", page.file.src_uri).parent
    if page.file.src_uri == KUBERNETES:
        here = Path("k8s")

    def mended(found: re.Match[str]) -> str:
        text, link, anchor = found[1], found[2], found[3] or ""
        if ":" in link or (not link.startswith("..") and here != Path("k8s")):
            return found[0]
        target = (ROOT / here / link).resolve().relative_to(ROOT).as_posix()
        if target == "k8s/README.md":
            inside = KUBERNETES
        elif target.startswith("docs/") and target.endswith(".md"):
            inside = target.removeprefix("docs/")
        else:
            return text if f"`{target}`" in text or text == target else f"{text} (`{target}`)"
        ups = "../" * page.file.src_uri.count("/")
        return f"[{text}]({ups}{inside}{anchor})"

    return _LINK.sub(mended, markdown)
