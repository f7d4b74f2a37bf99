"""The command line: one typed function a verb, its docstring is the help.

Nothing imported here loads torch, flwr or ray; a verb that needs them imports them when it runs.
"""

from __future__ import annotations

import errno
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated

import click
import typer

from deploy.cli import (
    client,
    compare,
    data,
    doctor,
    edge,
    export,
    k8s,
    live,
    models,
    report,
    runs,
    server,
    simulate,
    submit,
)
from shared_models.errors import Interrupted, WildflowerError

app = typer.Typer(
    name="wildflower",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"wildflower {importlib.metadata.version('wildflower')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Federated training for edge devices: simulate, train, export, verify."""


app.command()(simulate.simulate)
app.command()(export.export)
app.command()(export.verify)
app.command()(edge.predict)
app.command()(edge.bench)
app.command()(compare.compare)
app.command()(report.report)
app.command()(live.live)
app.command()(models.models)
app.command()(doctor.doctor)
app.command()(client.client)
app.command()(submit.submit)
app.command()(runs.status)
app.command()(runs.stop)
app.command()(runs.logs)
app.add_typer(data.app, name="data")
app.add_typer(server.app, name="server")
app.add_typer(k8s.app, name="k8s")


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code, and says in one line what went wrong."""
    try:
        result = app(list(arguments), prog_name="wildflower", standalone_mode=False)
        if result == Interrupted.exit_code:  # what typer makes of Ctrl-C
            raise Interrupted("interrupted")
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError:
        return 2  # the help was printed when the error was made
    except (WildflowerError, click.ClickException, click.Abort) as error:
        message, code = _told(error)
    except ModuleNotFoundError as error:
        advice = "run `make env`, or install the extra that brings it (`wildflower doctor` tells)"
        message, code = f"{error.name} is not installed: {advice}", 1
    except OSError as error:
        message, code = _describe(error), 2 if error.errno == errno.ENAMETOOLONG else 1
    stopped = code == Interrupted.exit_code  # by the user, which is no error
    print(message if stopped else f"error: {message}", file=sys.stderr)
    return code


def _told(error: WildflowerError | click.ClickException | click.Abort) -> tuple[str, int]:
    if isinstance(error, WildflowerError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    return "interrupted", Interrupted.exit_code


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}the disk is full; free some space, then run the command again"
    return f"{where}{error.strerror or error}"
