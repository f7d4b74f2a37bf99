"""`wildflower server`: make one, run it, say who may connect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.output import AsJson, print_json, print_table
from deploy.cli.watching import (
    LOOPBACK,
    LogFormat,
    LogFormatOption,
    MetricsBind,
    MetricsPort,
    metrics_address,
    speaker,
)
from deploy.fleet.connection import is_loopback
from shared_models.errors import InputError

if TYPE_CHECKING:
    from deploy.fleet.health import HealthAddress
    from deploy.fleet.home import ServerHome

app = typer.Typer(help="Make and run a fleet's server; add its clients.", no_args_is_help=True)

_State = Annotated[Path, typer.Option("--state", help="The server's state folder.")]
_HealthPort = Annotated[
    int | None,
    typer.Option(help="gRPC's health service: '' is alive, 'ready' is ready.", min=1, max=65535),
]
_HealthHost = Annotated[str, typer.Option(help="The address that it listens on.")]


@app.command("init")
def init(
    state: _State,
    name: Annotated[
        list[str] | None, typer.Option(help="A host name or IP address of it; may be repeated.")
    ] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="A new server certificate under the same CA.")
    ] = False,
    days: Annotated[int, typer.Option(help="How long the certificate lasts.", min=1)] = 365,
    as_json: AsJson = False,
) -> None:
    """Make a CA, the server's certificate and the operator's token.

    Names are what devices and operators call the server; localhost and 127.0.0.1 are always in.
    The CA's key signs nothing but `--renew`: you may keep it away from the server till then.

    Example: wildflower server init --state server --name fleet.example.org --name 192.168.1.10
    """
    from deploy.fleet.home import create_home, renew_certificate

    home = _home(state)
    names = name or []
    if renew:
        names = renew_certificate(home, names, days)
    else:
        create_home(home, names, days)
    if as_json:
        files = {"ca": home.ca, "certificate": home.certificate, "token_file": home.token_file}
        print_json({"names": names, **{key: str(path) for key, path in files.items()}})
    else:
        print(_renewed(home, names) if renew else _next_steps(home, names))


@app.command("start")
def start(
    state: _State,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on [default: all; --insecure: none].")
    ] = None,
    port: Annotated[int, typer.Option(help="The one port of everything.", min=1, max=65535)] = 8000,
    health_port: _HealthPort = None,
    health_host: _HealthHost = "127.0.0.1",
    keys: Annotated[
        Path | None,
        typer.Option(help="A folder, only read, with server/ and clients/ [default: the state]."),
    ] = None,
    external_executor: Annotated[
        bool, typer.Option("--external-executor", help="Runs are for `wildflower server execute`.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS and node keys; on loopback only.")
    ] = False,
    metrics_port: MetricsPort = None,
    metrics_bind: MetricsBind = LOOPBACK,
    log_format: LogFormatOption = LogFormat.text,
) -> None:
    """Run the server until Ctrl-C; whatever it started ends with it.

    A SuperLink that dies is started anew on the same state. What Flower says is in superlink.log.

    Example: wildflower server start --state server --port 8000
    """
    from deploy.fleet.home import Running
    from deploy.fleet.server import Listen, serve
    from deploy.watching.server import watched_server

    home, say = _home(state, keys), speaker(log_format, "server")
    address, as_json = metrics_address(metrics_port, metrics_bind), log_format is LogFormat.json
    health = _health(health_host, health_port)
    listen = Listen(host or "0.0.0.0", port, health, insecure, external_executor)  # noqa: S104
    if insecure and is_loopback(listen.host):
        say("--insecure: no TLS and, as Flower ties them together, no node keys")
    own = Running(os.getpid(), listen.host, listen.port, insecure)
    with watched_server(home, own, address, say, as_json=as_json):
        serve(home, listen, say)


@app.command("execute")
def execute_(
    state: _State,
    ca: Annotated[Path, typer.Option(help="The server's ca.pem.")],
    port: Annotated[int, typer.Option(help="The server's port.", min=1, max=65535)] = 8000,
    health_port: _HealthPort = None,
    health_host: _HealthHost = "127.0.0.1",
) -> None:
    """Run what runs do on the server, for a `server start --external-executor`, until Ctrl-C.

    The server must be on this very machine, or in the same pod, and the state folder shared.

    Example: wildflower server execute --state server --ca server/ca.pem
    """
    from deploy.fleet.connection import read_connection
    from deploy.fleet.executor import execute

    connection = read_connection(f"127.0.0.1:{port}", ca, None)
    health = _health(health_host, health_port)
    execute(_home(state), connection, health, lambda line: print(line, flush=True))


@app.command("add-client")
def add_client_(
    name: str,
    state: _State,
    public_key: Annotated[
        Path | None, typer.Option(help="A key that the device made itself (OpenSSH or PEM).")
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option(help="Clients that it may host, like 7 or 0-99 [default: any that is free]."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the device's files go [default: ./NAME].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a device in: make a key pair for it, or take its public key.

    OUT gets client.key and ca.pem, which the device needs; move them there, keep no copy.

    Example: wildflower server add-client watch-1 --state server --hosts 1 --out watch-1
    """
    from deploy.fleet.registry import add_client, credentials, require_name

    home = _home(state)
    home.require()
    require_name(name)
    folder = None if public_key and out is None else (out or Path(name))
    if folder is not None and public_key is None and (folder / "client.key").exists():
        raise InputError(f"{folder / 'client.key'}: exists already; choose another --out")
    public, private = _keys_of(name, public_key)
    with credentials(home, folder, private) as written:
        change = add_client(home, name, public, hosts)
    if as_json:
        files = [str(path) for path in written]
        print_json({"name": name, "registered": change is not None, "files": files})
        return
    when = "now" if change else "when the server starts"
    copy = f"; copy to the device: {', '.join(map(str, written))}" if written else ""
    print(f"client {name!r} may connect {when}{copy}")


def _keys_of(name: str, public_key: Path | None) -> tuple[bytes, bytes | None]:
    """Returns a device's public key, and its private one if we make the pair."""
    from deploy.fleet.node_keys import make_node_key, read_public_key

    if public_key is not None:
        return read_public_key(public_key, name), None
    pair = make_node_key(name)
    return pair.public, pair.private


@app.command("list-clients")
def list_clients(state: _State, as_json: AsJson = False) -> None:
    """List who may connect, and who is there.

    Example: wildflower server list-clients --state server
    """
    from deploy.fleet.registry import describe_clients

    rows = describe_clients(_home(state))
    if as_json:
        print_json(rows)
        return
    columns = ("client", "may host", "status", "last seen", "node")
    print_table(
        columns,
        [
            (r["name"], r["hosts"] or "any", r["status"], r["last_seen"] or "", r["node_id"] or "")
            for r in rows
        ],
    )


@app.command("remove-client")
def remove_client_(name: str, state: _State, as_json: AsJson = False) -> None:
    """Shut a device out; its key is never let in again.

    Example: wildflower server remove-client watch-1 --state server
    """
    from deploy.fleet.registry import remove_client

    change = remove_client(_home(state), name)
    if as_json:
        print_json({"name": name, "unregistered": change is not None})
    else:
        print(f"client {name!r} is shut out {'now' if change else 'when the server starts'}")


def _home(state: Path, keys: Path | None = None) -> ServerHome:
    from deploy.fleet.home import ServerHome

    return ServerHome(state.absolute(), keys and keys.absolute())


def _health(host: str, port: int | None) -> HealthAddress | None:
    from deploy.fleet.health import HealthAddress

    return None if port is None else HealthAddress(host, port)


def _next_steps(home: ServerHome, names: list[str]) -> str:
    server = names[0] if names else "127.0.0.1"
    return (
        f"a server was made in {home.path}, for {', '.join(['localhost', '127.0.0.1', *names])}\n"
        f"start it:           wildflower server start --state {home.path}\n"
        f"let a device in:    wildflower server add-client NAME --state {home.path} --out NAME\n"
        f"  on the device:    wildflower client --server {server}:8000 --credentials NAME ...\n"
        f"submit from afar:   copy {home.ca.name} and {home.token_file.name} there (the token is a "
        "secret)\n"
        f"keep {home.ca_key.name} safe, or elsewhere: it is only needed to renew the certificate"
    )


def _renewed(home: ServerHome, names: list[str]) -> str:
    covered = ", ".join(["localhost", "127.0.0.1", *names])
    when = "a server that runs shows it when no run is at work"
    return f"{home.certificate}: renewed, for {covered}; {when}"
