"""`wildflower compare`: which of several runs' files are worth having."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.output import AsJson, print_json, print_table


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders with exported files.")],
    plot: Annotated[
        Path | None, typer.Option(help="An .svg to draw the score over size and latency into.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the exported files of several runs: size, latency, score.

    A star marks those that no other file beats: none is as small, as fast and as good (accuracy,
    mean IoU, R^2), and better in one of these. What failed its gate is marked. Nothing is
    run again. A warning says where runs were made on other machines, or measured on other examples.

    Example: wildflower compare runs/mnist-cnn-1 runs/prune-mnist-1 --plot frontier.svg
    """
    from deploy.frontier import points_of, save_plot, warnings_of

    points = points_of(runs)
    for warning in warnings_of(runs):
        print(f"warning: {warning}", file=sys.stderr)
    if plot is not None:
        save_plot(points, plot)
    if as_json:
        print_json([asdict(point) for point in points])
        return
    columns = ("", "run", "file", "quantized", "runtime", "KB ", "ms ", "score ", "parameters ")
    print_table(
        columns,
        [
            (
                "*" if p.frontier else "" if p.passed else "failed",
                p.run,
                p.file,
                p.quantization,
                p.runtime,
                f"{p.size_bytes / 1000:.0f}",
                f"{p.median_ms:.3f}",
                f"{p.score:.4f}",
                f"{p.params:,}",
            )
            for p in sorted(points, key=lambda p: p.size_bytes)
        ],
    )
