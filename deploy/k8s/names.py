"""Gateways, and the names by which a server is called inside a cluster."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.fleet.hosts import parse_hosts
from shared_models.errors import InputError

SERVICE = "wildflower-server"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Gateway:
    """A SuperNode inside the cluster, and the clients that it hosts, like "0-99"."""

    name: str
    hosts: str


def gateways(clients: int, told: Sequence[str]) -> list[Gateway]:
    """Returns a gateway for each of so many clients, and those told as NAME=HOSTS.

    >>> gateways(1, ["north=10-19"])
    [Gateway(name='gateway-0', hosts='0'), Gateway(name='north', hosts='10-19')]
    """
    found = [Gateway(f"gateway-{number}", str(number)) for number in range(clients)]
    found += [_gateway(text) for text in told]
    owners: dict[int, str] = {}
    for gateway in found:
        for client in parse_hosts(gateway.hosts):
            if client in owners:
                raise InputError(
                    f"client {client} is on two gateways: {owners[client]} and {gateway.name}"
                )
            owners[client] = gateway.name
    if len({gateway.name for gateway in found}) < len(found):
        raise InputError("--gateway: two gateways have one name")
    return found


def require_namespace(namespace: str) -> None:
    """Raises `InputError` unless a namespace may be called so."""
    if not _NAMESPACE.fullmatch(namespace):
        raise InputError(
            f"--namespace {namespace!r}: a namespace has small letters, digits and '-', at most 63"
        )


def server_names(namespace: str) -> list[str]:
    """Returns what pods call the server.

    >>> server_names("wildflower")[1]
    'wildflower-server.wildflower'
    """
    base = f"{SERVICE}.{namespace}"
    return [SERVICE, base, f"{base}.svc", f"{base}.svc.cluster.local"]


def _gateway(text: str) -> Gateway:
    name, equals, hosts = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise InputError(
            f"--gateway {text!r}: expected NAME=HOSTS, like north=0-99; a name has small letters, "
            "digits and '-', at most 40"
        )
    parse_hosts(hosts)
    return Gateway(name, hosts)
