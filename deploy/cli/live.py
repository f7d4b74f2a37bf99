"""`wildflower live`: the report of a run in a browser, while the run goes on."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.connecting import Ca, Credentials, Insecure, Token, connection_of
from deploy.fleet.connection import is_loopback, join_address
from shared_models.errors import InputError, ServerError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from deploy.fleet.connection import Connection
    from deploy.fleet.remote import Remote
    from deploy.report.story import Story

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)


def live(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Run folders, or a run's id.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="HOST:PORT of a fleet's server; its newest run, or RUN.")
    ] = None,
    ca: Ca = None,
    token: Token = None,
    credentials: Credentials = None,
    insecure: Insecure = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the page is; 0: any that is free.")
    ] = 8321,
    bind: Annotated[
        str, typer.Option(help="The address to listen on; one that others reach takes a token.")
    ] = "127.0.0.1",
    live_token: Annotated[
        Path | None,
        typer.Option("--live-token", help="A file with the token to ask for; default: a new one."),
    ] = None,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Serve the report of a run, which follows the run by itself, on this machine.

    RUN is the folder of a run that goes on, or is over; of several the page has all. With --server
    it is the id of a run on a fleet.

    Example: wildflower live runs/mnist-cnn-1

    Of a fleet: wildflower live --server fleet.example.org:8000 --credentials fleet/

    To look from elsewhere: wildflower live runs/mnist-cnn-1 --bind 0.0.0.0
    """
    from deploy.report.live import Served, make_app

    asked = runs or []
    with contextlib.ExitStack() as stack:
        if server is None:
            read = _here(asked)
        else:
            connection = connection_of(server, ca, token, credentials, insecure)
            read = stack.enter_context(_far_away(connection, asked, every))
        read()  # what is wrong with it is better told here
        key = _key(bind, live_token)
        own = stack.enter_context(listener(bind, port))
        _announce(bind, own.getsockname()[1], key)
        _serve(make_app(read, Served(every, key)), own)


def _here(runs: Sequence[str]) -> Callable[[], list[Story]]:
    from deploy.report.reading import read_story

    if not runs:
        raise InputError("expected the folder of a RUN, or --server HOST:PORT")
    return lambda: [read_story(Path(run)) for run in runs]


@contextlib.contextmanager
def _far_away(
    connection: Connection, runs: Sequence[str], every_s: float
) -> Iterator[Callable[[], list[Story]]]:
    from deploy.fleet.remote import Remote
    from deploy.report.mirror import Mirror

    with Remote(connection) as remote, tempfile.TemporaryDirectory() as folder:
        asked = runs or [_newest(remote, every_s)]
        mirrors = [Mirror(remote, run, Path(folder)) for run in asked]
        yield lambda: [mirror.story() for mirror in mirrors]


def _newest(remote: Remote, every_s: float) -> str:
    """Returns the newest run that has begun, as soon as there is one."""
    newest = _begun(remote)
    if newest is None:
        told = "no run has begun yet: this waits for one; `wildflower submit CONFIG` starts one"
        print(told, flush=True)
    while newest is None:
        time.sleep(every_s)
        with contextlib.suppress(ServerError):  # it may be away while somebody waits
            newest = _begun(remote)
    return newest


def _begun(remote: Remote) -> str | None:
    """Returns the newest run that has begun, None before there is one."""
    runs = (str(own["run"]) for own in reversed(remote.folders()))
    return next((run for run in runs if "config.toml" in remote.files(run)), None)


def _key(bind: str, file: Path | None) -> str | None:
    """Returns the token to ask for, None for nobody but this machine."""
    if file is None:
        return None if is_loopback(bind) else secrets.token_urlsafe(24)
    text = file.read_text(errors="replace").strip()
    if not _TOKEN.fullmatch(text):
        raise InputError(f"--live-token {file}: is to hold 16 letters, digits, - or _, or more")
    return text


def listener(bind: str, port: int) -> socket.socket:
    """Returns what listens on an address; `InputError` where nobody can."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        return socket.create_server((bind, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--bind {bind} --port {port}: {reason}; choose another --port") from None


def _announce(bind: str, port: int, key: str | None) -> None:
    host = socket.gethostname() if bind in ("0.0.0.0", "::") else bind  # noqa: S104  to be named
    query = "" if key is None else f"?token={key}"
    print(
        f"http://{join_address(host, port)}/{query} : open it in a browser; Ctrl-C ends it",
        flush=True,
    )
    if key is not None:
        print("the token travels without TLS: only in a network that you trust", flush=True)


def _serve(app: Starlette, own: socket.socket) -> None:
    from deploy.report.live import server_of

    with contextlib.suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[own])
