"""`wildflower status`, `stop`, `logs`: the runs of a server, from afar."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli.connecting import Ca, Credentials, Insecure, Server, Token, connection_of
from deploy.cli.output import AsJson, print_json, print_table
from shared_models.errors import InputError

if TYPE_CHECKING:
    from deploy.fleet.remote import FlowerRun, Remote
    from deploy.fleet.submit import Submission

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of Flower's log, which knows no terminal

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its folder here.")]


def status(
    server: Server = None,
    ca: Ca = None,
    token: Token = None,
    credentials: Credentials = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Show the runs of a server, how far they are, and the nodes that it knows.

    Example: wildflower status --server fleet.example.org:8000 --credentials fleet/
    """
    from deploy.fleet.remote import Remote

    with Remote(connection_of(server, ca, token, credentials, insecure)) as remote:
        told = _status_of(remote)
    if as_json:
        print_json(told)
        return
    columns = ("run", "status", "round ", "MB ")
    rows = [
        (run["run"], run["status"], run["round"] or "", f"{run['bytes'] / 1e6:.1f}")
        for run in told["runs"]
    ]
    print_table(columns, rows)
    print()
    nodes = [(node["name"] or "", node["status"], node["node"]) for node in told["nodes"]]
    print_table(("device", "status", "node"), nodes)


def _status_of(remote: Remote) -> dict[str, Any]:
    latest = {run.run: run for run in remote.flower_runs() if run.run}
    runs = []
    for folder in remote.folders():
        name = str(folder["run"])
        runs.append({**folder, "status": _status(folder, latest), "round": _round_of(remote, name)})
    known = {run["run"] for run in runs}
    runs += [
        {"run": name, "status": run.status, "round": None, "bytes": 0}
        for name, run in latest.items()
        if name not in known
    ]
    nodes = [
        {"node": str(node.id), "name": node.name or None, "status": node.status}
        for node in remote.nodes()
    ]
    return {"runs": runs, "nodes": nodes}


def _status(folder: dict[str, Any], latest: dict[str, FlowerRun]) -> str:
    run, own = latest.get(str(folder["run"])), str(folder["status"])
    if own not in ("running", "unfinished"):  # how it ended; Flower takes a moment to notice
        return own
    if run is not None and not run.is_over:
        return run.status
    return "stopped" if run is not None and run.ended == "stopped" else "unfinished"


def _round_of(remote: Remote, run: str) -> str | None:
    """Returns e.g. `train 3`, from the last line of the metrics that is whole."""
    from server.event_log import EVENTS, read_event
    from server.events import Waiting

    lines = remote.read(run, "metrics.jsonl").decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            told = json.loads(line)
            return f"{told['stage']} {told['round']}"
        except (ValueError, KeyError, TypeError):
            continue
    events = remote.read(run, EVENTS).decode(errors="replace").splitlines()
    last = read_event(events[-1]) if events else None
    return f"waits: {last.clients}/{last.wanted}" if isinstance(last, Waiting) else None


def stop(
    run: RunId,
    server: Server = None,
    ca: Ca = None,
    token: Token = None,
    credentials: Credentials = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Stop a run at the server; its folder stays, so that it can go on.

    Example: wildflower stop watch-lstm-fleet-1a2b3c4d --server fleet.example.org:8000
    """
    from deploy.fleet.remote import Remote

    name, kept = _named(run)
    with Remote(connection_of(server, ca, token, credentials, insecure, kept)) as remote:
        found = [own for own in _runs_of(remote, name) if not own.is_over]
        if not found:
            raise InputError(f"{name}: is not running; `wildflower status` tells what is")
        for own in found:
            remote.stop(own.id)
    if as_json:
        print_json({"run": name, "stopped": len(found)})
    else:
        print(f"{name}: stopped; `wildflower submit runs/{name} --resume` goes on")


def logs(
    run: RunId,
    server: Server = None,
    ca: Ca = None,
    token: Token = None,
    credentials: Credentials = None,
    insecure: Insecure = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a run's server side said.

    Example: wildflower logs watch-lstm-fleet-1a2b3c4d --server fleet.example.org:8000
    """
    from deploy.fleet.remote import Remote

    name, kept = _named(run)
    said: list[str] = []
    with Remote(connection_of(server, ca, token, credentials, insecure, kept)) as remote:
        for text in _said(remote, name, follow=follow):
            if as_json:
                said.append(text)
            else:
                print(text, end="", flush=True)
    if as_json:
        print_json({"run": name, "log": "".join(said)})


def _said(remote: Remote, name: str, *, follow: bool) -> Iterator[str]:
    for own in _runs_of(remote, name):
        for text in remote.logs(own.id):
            yield _COLOURS.sub("", text)
            if not follow and not own.is_over:
                break  # the first has all that there is; what follows is yet to happen


def _named(run: str) -> tuple[str, Submission | None]:
    """Returns a run's id; a folder here stands for the run that was submitted from it."""
    from deploy.fleet.submit import SUBMISSION, read_submission

    if os.sep not in run and not Path(run, SUBMISSION).exists():
        return run, None
    if not Path(run, SUBMISSION).exists():
        raise InputError(f"{run}: nothing was submitted from there: it has no {SUBMISSION}")
    submission = read_submission(Path(run))
    return submission.run, submission


def _runs_of(remote: Remote, name: str) -> list[FlowerRun]:
    found = [own for own in remote.flower_runs() if own.run == name]
    if not found:
        raise InputError(f"{name}: the server knows no such run; `wildflower status` tells which")
    return found
