"""`wildflower client`: this machine's data takes part, for as long as the command runs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.watching import (
    LOOPBACK,
    LogFormat,
    LogFormatOption,
    MetricsBind,
    MetricsPort,
    metrics_address,
    speaker,
)
from deploy.fleet.hosts import parse_hosts
from shared_models.errors import InputError

if TYPE_CHECKING:
    from deploy.fleet.connection import Connection
    from deploy.fleet.device import Device
    from deploy.metrics.endpoint import MetricsAddress

_LARGEST_ID = 2**31 - 1
_LONGEST_NAME = 100


Server = Annotated[str, typer.Option("--server", help="HOST:PORT of the server.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="An .npz, a .csv or .parquet file, a folder of them or of idx files, "
        "module:function, or a dataset's name. {client} stands for a client's id.",
    ),
]
ClientId = Annotated[
    int | None,
    typer.Option("--client-id", min=0, max=_LARGEST_ID, help="The device's one client."),
]
Hosts = Annotated[
    str | None, typer.Option("--hosts", help="A gateway's clients, like 0-99 or 3,7,20-29.")
]
Credentials = Annotated[
    Path | None,
    typer.Option("--credentials", help="The folder that `server add-client --out` made."),
]
Key = Annotated[Path | None, typer.Option("--key", help="The device's private key.")]
Ca = Annotated[Path | None, typer.Option("--ca", help="The ca.pem of the server.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Without TLS and key; on this machine only.")
]
State = Annotated[
    Path | None, typer.Option("--state", help="The folder of this device's own files.")
]
Threads = Annotated[
    int, typer.Option("--threads", min=1, help="Of the trainer; 1 can be replayed.")
]
MemoryMb = Annotated[
    int | None, typer.Option("--memory-mb", min=100, help="What the trainer may take.")
]
When = Annotated[
    str | None,
    typer.Option("--when", help="A command; it is trained only while its exit status is 0."),
]
HealthPort = Annotated[
    int | None,
    typer.Option(
        "--health-port", min=1, max=65535, help="gRPC's health service: '' is alive, 'ready' ready."
    ),
]
HealthHost = Annotated[
    str, typer.Option("--health-host", help="The address that the health service listens on.")
]
MaxDiskMb = Annotated[
    int, typer.Option("--max-disk-mb", min=10, help="What the state folder may take.")
]


def client(
    server: Server,
    data: Data,
    client_id: ClientId = None,
    hosts: Hosts = None,
    credentials: Credentials = None,
    key: Key = None,
    ca: Ca = None,
    insecure: Insecure = False,
    state: State = None,
    threads: Threads = 1,
    memory_mb: MemoryMb = None,
    when: When = None,
    max_disk_mb: MaxDiskMb = 200,
    health_port: HealthPort = None,
    health_host: HealthHost = "127.0.0.1",
    metrics_port: MetricsPort = None,
    metrics_bind: MetricsBind = LOOPBACK,
    log_format: LogFormatOption = LogFormat.text,
) -> None:
    """Let this machine's data take part in a fleet's training; runs until it is stopped.

    Example: wildflower client --server server.example:8000 --credentials watch-1 --data mine.npz
    --client-id 1
    """
    ids = hosted(client_id, hosts)
    connection, key_file = _access(server, credentials, key, ca, insecure)
    from clients.hosting import Hosting, Keeping
    from clients.warm.service import Limits
    from deploy.fleet.device import Device
    from deploy.fleet.health import HealthAddress

    place = state or _own_state(ids, hosts)
    keeping = Keeping(str(place.absolute() / "client_states"), max_disk_mb // 2)
    device = Device(
        connection=connection,
        key=key_file,
        state=place,
        hosting_json=Hosting(data, ids, threads, keeping).to_json(),
        limits=Limits(memory_mb, when),
        max_disk_mb=max_disk_mb,
        health=None if health_port is None else HealthAddress(health_host, health_port),
    )
    _run(device, ids, metrics_address(metrics_port, metrics_bind), log_format)


def _run(
    device: Device, ids: tuple[int, ...], metrics: MetricsAddress | None, log_format: LogFormat
) -> None:
    from deploy.fleet.client import prepare_state, run_device
    from deploy.metrics.device import watched

    who = f"client {ids[0]}" if len(ids) == 1 else f"{len(ids)} clients"
    say = speaker(log_format, who)
    with watched(metrics, len(ids)) as observe:
        prepare_state(device.state)
        say(f"{who}, state in {device.state}")
        run_device(replace(device, observe=observe), say)


def _own_state(ids: tuple[int, ...], hosts: str | None) -> Path:
    from platformdirs import user_state_path

    return user_state_path("wildflower") / "clients" / folder_name(ids, hosts)


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
    return parse_hosts(str(hosts))


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
