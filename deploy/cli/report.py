"""`wildflower report`: a run, or several side by side, as one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.output import AsJson, print_json
from shared_models.errors import InputError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file; default: report.html in the folder of a single run, or here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write report.html: what a run was, how well it went, on whom it works badly, what to ship.

    The file needs nothing else, no network either. It can be made at any time, also while a run
    goes on; of several runs it has what they came to side by side, then each by itself.

    Example: wildflower report runs/mnist-cnn-1

    To compare: wildflower report runs/mnist-cnn-1 runs/mnist-cnn-2 --out both.html
    """
    from deploy.report.page import REPORT, write_report

    path = out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder; name a file")
    write_report(runs, path)
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        print(f"{path}: open it in a browser")
