"""`wildflower simulate --app`: somebody's Flower app on simulated nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.apps.app import read_app
from deploy.cli.output import print_json
from shared_models.errors import InputError


def simulate_app(
    folder: Path,
    nodes: int | None,
    workers: int | None,
    settings: Sequence[str],
    others: Mapping[str, object],
    as_json: bool,
) -> None:
    """Runs the app in a folder; `others` are options that mean nothing to it."""
    from deploy.apps.launch import run_app

    for option, given in others.items():
        if given:
            raise InputError(f"{option} does not go with --app; -s changes the app's run config")
    if nodes is None:
        raise InputError("--app needs --num-supernodes N: how many nodes to simulate")
    told = run_app(read_app(folder, settings), nodes, workers, quiet_stdout=as_json)
    if as_json:
        print_json(told)
    else:
        print(_summary(told, nodes))


def _summary(told: Mapping[str, Any], nodes: int) -> str:
    return (
        f"{told['messages']} messages to {nodes} nodes, {told['failed']} failed, in "
        f"{told['app_s']:.1f} s after {told['startup_s']:.1f} s to start; {told['workers']} workers"
    )
