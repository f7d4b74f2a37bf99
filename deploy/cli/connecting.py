"""Options of the verbs that go to a server: where it is, and what opens its doors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared_models.errors import InputError

if TYPE_CHECKING:
    from deploy.fleet.connection import Connection
    from deploy.fleet.submit import Submission

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
