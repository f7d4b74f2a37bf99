"""`wildflower client`: this machine's data takes part, for as long as the command runs."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared_models.errors import InputError

if TYPE_CHECKING:
    from deploy.fleet.connection import Connection

_MOST_CLIENTS = 1_000_000
_LARGEST_ID = 2**31 - 1
_LONGEST_NAME = 100


def client(
    server: Annotated[str, typer.Option("--server", help="HOST:PORT of the server.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="An .npz, a .csv or .parquet file, a folder of them or of idx files, "
            "module:function, or a dataset's name. {client} stands for a client's id.",
        ),
    ],
    client_id: Annotated[
        int | None,
        typer.Option("--client-id", min=0, max=_LARGEST_ID, help="The device's one client."),
    ] = None,
    hosts: Annotated[
        str | None, typer.Option("--hosts", help="A gateway's clients, like 0-99 or 3,7,20-29.")
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option("--credentials", help="The folder that `server add-client --out` made."),
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="The device's private key.")] = None,
    ca: Annotated[Path | None, typer.Option("--ca", help="The ca.pem of the server.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS and key; on this machine only.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option("--state", help="The folder of this device's own files.")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Of the trainer; 1 can be replayed.")
    ] = 1,
    memory_mb: Annotated[
        int | None, typer.Option("--memory-mb", min=100, help="What the trainer may take.")
    ] = None,
    when: Annotated[
        str | None,
        typer.Option("--when", help="A command; it is trained only while its exit status is 0."),
    ] = None,
    max_disk_mb: Annotated[
        int, typer.Option("--max-disk-mb", min=10, help="What the state folder may take.")
    ] = 200,
) -> None:
    """Let this machine's data take part in a fleet's training; runs until it is stopped.

    Example: wildflower client --server server.example:8000 --credentials watch-1 --data mine.npz
    --client-id 1
    """
    ids = hosted(client_id, hosts)
    connection, key_file = _access(server, credentials, key, ca, insecure)
    from platformdirs import user_state_path

    from clients.hosting import Hosting
    from clients.warm.service import Limits
    from deploy.fleet.client import Device, run_device

    device = Device(
        connection=connection,
        key=key_file,
        state=state or user_state_path("wildflower") / "clients" / folder_name(ids, hosts),
        hosting_json=Hosting(data, ids, threads).to_json(),
        limits=Limits(memory_mb, when),
        max_disk_mb=max_disk_mb,
    )
    clients = f"client {ids[0]}" if len(ids) == 1 else f"{len(ids)} clients"
    print(f"{clients}, state in {device.state}", flush=True)
    run_device(device, lambda line: print(line, flush=True))


def folder_name(ids: tuple[int, ...], hosts: str | None) -> str:
    """Returns the name of a device's own folder among those of this user's devices.

    >>> folder_name((3, 7), "3,7")
    '3_7'
    """
    name = hosts.replace(",", "_") if hosts else str(ids[0])
    if len(name) <= _LONGEST_NAME:  # file systems take no name that is much longer
        return name
    return f"{ids[0]}-{ids[-1]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def hosted(client_id: int | None, hosts: str | None) -> tuple[int, ...]:
    """Returns the ids of the clients that a node hosts.

    >>> hosted(None, "3,7,20-22")
    (3, 7, 20, 21, 22)
    """
    if (client_id is None) == (hosts is None):
        raise InputError("expected one of --client-id N (a device) and --hosts 0-99 (a gateway)")
    if client_id is not None:
        return (client_id,)
    ids: list[int] = []
    for part in str(hosts).split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if not found:
            raise InputError(f"--hosts {hosts}: {part!r} is not a client id or a range like 0-99")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last - first >= _MOST_CLIENTS:
            raise InputError(f"--hosts {hosts}: {part!r} is not a range from small to large")
        ids.extend(range(first, last + 1))
    if len(set(ids)) < len(ids):
        raise InputError(f"--hosts {hosts}: names a client twice")
    return tuple(sorted(ids))


def _access(
    server: str, credentials: Path | None, key: Path | None, ca: Path | None, insecure: bool
) -> tuple[Connection, Path | None]:
    from deploy.fleet.connection import read_connection

    if insecure and (credentials or key):
        raise InputError("--insecure contradicts --credentials and --key, which need TLS")
    if not insecure and credentials is None and (key is None or ca is None):
        raise InputError("expected --credentials DIR, or --key FILE and --ca FILE, or --insecure")
    if credentials is not None and (key or ca):
        raise InputError("--credentials: contradicts --key and --ca; it is the folder of both")
    if credentials is not None:
        key, ca = credentials / "client.key", credentials / "ca.pem"
    if key is not None:
        from deploy.fleet.node_keys import require_private_key

        require_private_key(key)
    return read_connection(server, ca, None, insecure=insecure), key
