"""`wildflower submit`, `status`, `stop`, `logs`: runs on a fleet, from afar."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli.output import AsJson, print_json, print_table
from deploy.cli.watching import (
    LogFormat,
    LogFormatOption,
    Shown,
    Track,
    observer,
    watching,
)
from shared_models.config import read_config
from shared_models.errors import InputError, ServerError

if TYPE_CHECKING:
    from deploy.fleet.connection import Connection
    from deploy.fleet.remote import FlowerRun, Remote
    from deploy.fleet.submit import Submission
    from shared_models.config import Config

Server = Annotated[str | None, typer.Option(help="HOST:PORT of the server.")]
Ca = Annotated[Path | None, typer.Option(help="The server's ca.pem.")]
Token = Annotated[Path | None, typer.Option(help="The server's operator.token.")]
Credentials = Annotated[
    Path | None,
    typer.Option(
        envvar="WILDFLOWER_CREDENTIALS",
        help="A folder with both, ca.pem and operator.token, e.g. the server's state folder.",
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Without TLS, for a server on this very machine.")
]
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of Flower's log, which knows no terminal

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its folder here.")]


def submit(
    config: Annotated[Path, typer.Argument(help="A TOML file, or a folder to go on with.")],
    server: Server = None,
    ca: Ca = None,
    token: Token = None,
    credentials: Credentials = None,
    insecure: Insecure = False,
    follow: Annotated[
        bool, typer.Option(help="Show the run until it is done, then bring it home and export it.")
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Follow, or go on with, the run in the folder CONFIG.")
    ] = False,
    once: Annotated[
        bool,
        typer.Option("--once", help="Go on with the run in --out if there is one, or submit it."),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key=value, e.g. stages.train.rounds=3; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default: runs/<id>.")] = None,
    track: Track = None,
    log_format: LogFormatOption = LogFormat.text,
    as_json: AsJson = False,
) -> None:
    """Run the stages of a config on a fleet, show its progress, and bring home what it made.

    The run goes on at the server whether somebody follows it or not. When the server dies and comes
    back, whoever follows has it go on from its last round.

    Example: wildflower submit examples/watch-lstm-fleet.toml --server fleet.example.org:8000
    --credentials fleet/

    To follow a run again, or go on with one that was stopped: wildflower submit runs/ID --resume
    """
    from deploy.fleet.remote import Remote

    if track and not follow:
        raise InputError("--track: contradicts --no-follow; who does not follow cannot tell of it")
    shown = Shown(watching(track), log_format, as_json)
    if once and (found := _begun(config, settings or [], out)):
        config, settings, resume = found, None, True
    folder = _resumed(config, settings, out) if resume else None
    kept = _submission(folder) if folder else None
    connection = connection_of(server, ca, token, credentials, insecure, kept)
    with Remote(connection) as remote:
        if once:
            _await(remote)
        if folder is None:
            folder = _submitted(remote, config, settings or [], out)
            offset = 0
        else:
            offset = _taken_up(remote, folder)
        if follow:
            _follow(remote, folder, offset, shown)
    _tell(folder, follow, as_json)


def _begun(config: Path, settings: list[str], out: Path | None) -> Path | None:
    """Returns the folder of the run that this very config was submitted as before, if it was."""
    from deploy.fleet.submit import SUBMISSION

    if out is None:
        raise InputError("--once: needs --out, by which the run is found again")
    kept = out / "config.toml"
    if not (out / SUBMISSION).exists():
        kept.unlink(missing_ok=True)  # of a process that was killed before it had submitted
        return None
    if _training(read_config(config, settings)) != _training(read_config(kept, [])):
        raise InputError(f"--once: {out} has the run of another config; choose another --out")
    return out


def _await(remote: Remote, patience_s: float = 600.0) -> None:
    """Returns when the server answers: who is started beside it may be the first."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            remote.nodes()
            return
        except ServerError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def _training(config: Config) -> dict[str, Any]:
    """Returns what was asked for; the plan may be the one that the server chose."""
    return {key: value for key, value in config.identity().items() if key not in ("plan", "name")}


def _resumed(config: Path, settings: list[str] | None, out: Path | None) -> Path:
    if settings:
        raise InputError("-s does not go with --resume: a run goes on as it was submitted")
    if out is not None and out.absolute() != config.absolute():
        raise InputError(f"--out {out}: contradicts --resume of the run in {config}")
    _submission(config)
    return config


def _submission(folder: Path) -> Submission:
    from deploy.fleet.submit import read_submission

    return read_submission(folder)


def _submitted(remote: Remote, config: Path, settings: list[str], out: Path | None) -> Path:
    from deploy.fleet.submit import new_run_id, submit

    resolved = read_config(config, settings)
    run = new_run_id(resolved.name)
    folder = out or Path("runs") / run
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; choose another --out")
    submit(remote, resolved, run, folder)
    return folder


def _taken_up(remote: Remote, folder: Path) -> int:
    from deploy.fleet.submit import resume

    return 0 if _is_home(folder) else resume(remote, folder)


def _is_home(folder: Path) -> bool:
    """Whether all of a run is here, so that at most its export is left to do."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        return bool(summary["status"] in ("done", "failed") and (folder / "manifest.json").exists())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _follow(remote: Remote, folder: Path, offset: int, shown: Shown) -> None:
    from deploy.fleet.submit import Follower, bring_home, interrupted
    from deploy.report.closing import reported
    from deploy.watching.sinks import AboutRun
    from deploy.watching.watch import opened

    run = _submission(folder).run
    about = AboutRun(run, folder, (folder / "config.toml").read_text())
    try:
        with (
            reported(folder),
            opened(shown.watching) as watch,
            observer(watch, about, shown, f"{run}: run folder {folder}") as observe,
        ):
            if not _is_home(folder):
                Follower(remote, folder, observe, offset=offset).follow()
                bring_home(remote, folder)
            _export(folder, observe)
    except KeyboardInterrupt:
        raise interrupted(folder, _submission(folder), is_home=_is_home(folder)) from None


def _export(folder: Path, display: Any) -> None:
    from deploy.simulate import export_stage
    from server.run_folder import RunFolder

    found = RunFolder(folder)
    stage = found.config().export_stage
    if stage is not None and not (found.summary().get("artefacts") and _is_done(found.summary())):
        export_stage(found, stage, display)


def _is_done(summary: dict[str, Any]) -> bool:
    return summary.get("status") == "done"


def _tell(folder: Path, follow: bool, as_json: bool) -> None:
    from deploy.cli.simulate import print_summary

    submission = _submission(folder)
    if follow:
        summary = json.loads((folder / "summary.json").read_text())
        if as_json:
            print_json(summary)
        else:
            print_summary(summary, folder)
    elif as_json:
        told = {"run": submission.run, "server": submission.server, "folder": str(folder)}
        print_json(told)
    else:
        print(f"{submission.run}: run folder {folder}")
        print(f"`wildflower submit {folder} --resume` follows it")


def connection_of(
    server: str | None,
    ca: Path | None,
    token: Path | None,
    credentials: Path | None,
    insecure: bool,
    kept: Submission | None = None,
) -> Connection:
    """Returns the connection that these options name, or else the one of a run that was submitted.

    `InputError` says what is missing.
    """
    from deploy.fleet.connection import read_connection

    if kept is not None:
        server = server or kept.server
        if not (ca or token or credentials or insecure):
            ca, token, insecure = kept.ca_file, kept.token_file, kept.ca is None
    if server is None:
        raise InputError("--server HOST:PORT is missing")
    if credentials is not None:
        if not credentials.is_dir():
            raise InputError(f"--credentials {credentials}: there is no such folder")
        ca = ca or credentials / "ca.pem"
        own = credentials / "operator.token"
        token = token or (own if own.exists() else None)
    return read_connection(server, None if insecure else ca, token, insecure=insecure)


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
    if os.sep not in run and not Path(run, "submission.json").exists():
        return run, None
    submission = _submission(Path(run))
    return submission.run, submission


def _runs_of(remote: Remote, name: str) -> list[FlowerRun]:
    found = [own for own in remote.flower_runs() if own.run == name]
    if not found:
        raise InputError(f"{name}: the server knows no such run; `wildflower status` tells which")
    return found
