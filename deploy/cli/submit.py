"""`wildflower submit`: a run on a fleet, from afar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli.connecting import Ca, Credentials, Insecure, Server, Token, connection_of
from deploy.cli.output import AsJson, print_json
from deploy.cli.summary import print_summary
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
    from deploy.fleet.remote import Remote
    from deploy.fleet.submit import Submission
    from shared_models.config import Config


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
    submission = _submission(folder)
    if follow:
        print_summary(folder, as_json)
    elif as_json:
        told = {"run": submission.run, "server": submission.server, "folder": str(folder)}
        print_json(told)
    else:
        print(f"{submission.run}: run folder {folder}")
        print(f"`wildflower submit {folder} --resume` follows it")
