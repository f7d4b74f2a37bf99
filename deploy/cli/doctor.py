"""`wildflower doctor`: is this machine ready?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from deploy.cli.output import AsJson, print_json, print_table


def doctor(as_json: AsJson = False) -> None:
    """Check versions, runtimes, compiler, devices, memory and disk, and say what to do.

    Exits with 1 when something is missing that a run needs. Example: wildflower doctor
    """
    from deploy.doctor import examine

    findings = examine(Path.cwd())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(
            ("check", "status", "found", "what to do"),
            [(f.check, f.status, f.found, f.advice) for f in findings],
        )
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)
