"""A fleet's certificates and keys as the Secrets and ConfigMaps that the manifests mount.

They are made in a folder of the operator's own (as `wildflower server init` makes it), which keeps
what no cluster is given: the CA's key. Applied again after a change, they change the cluster: the
server sees new clients and a new certificate without a restart. So a new CA, with a list of clients
that is empty, is only made when it is asked for: it would shut out every device, for ever.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.fleet.certificates import covers
from deploy.fleet.home import ServerHome, create_home, renew_certificate
from deploy.fleet.hosts import parse_hosts
from deploy.fleet.node_keys import make_node_key
from deploy.fleet.registry import add_client, client_names, may_host, write_credentials
from deploy.k8s.names import Gateway, require_namespace, server_names
from deploy.k8s.render import secret_name
from shared_models.errors import InputError

_LABELS = {"app.kubernetes.io/name": "wildflower"}


def create_keys(state: Path, namespace: str, hosts: Sequence[str]) -> None:
    """Makes the folder: a new CA, a certificate, an operator's token; `InputError` if it is there.

    Git leaves the folder out, wherever it is.
    """
    require_namespace(namespace)
    home = ServerHome(state.absolute())
    if home.notes.exists():
        raise InputError(f"--state {state}: keys are here already; leave out --init")
    create_home(home, [*server_names(namespace), *hosts], 365)
    (home.path / ".gitignore").write_text("*\n")


def make_keys(
    state: Path, namespace: str, hosts: Sequence[str], gateways: Sequence[Gateway], *, renew: bool
) -> str:
    """Makes keys of new gateways, and returns all as YAML; `InputError` if there is no folder."""
    require_namespace(namespace)
    home = ServerHome(state.absolute())
    if not home.notes.exists():
        raise InputError(
            f"--state {state}: no keys are here; if there are none elsewhere either, --init makes "
            "them, with a new CA that no device knows yet"
        )
    names = [*server_names(namespace), *hosts]
    if renew:
        renew_certificate(home, list(dict.fromkeys([*home.names(), *names])), 365)
    _require_covered(home, names)
    for gateway in gateways:
        _give_key(home, gateway)
    told = [*_of_server(home), *_of_clients(home)]
    for resource in told:
        resource["metadata"] |= {"namespace": namespace, "labels": _LABELS}
    return str(yaml.safe_dump_all(told, sort_keys=False))


def _require_covered(home: ServerHome, names: Sequence[str]) -> None:
    missing = [name for name in names if not covers(home.certificate, name)]
    if missing:
        raise InputError(
            f"{home.certificate}: is not for {', '.join(missing)}; add --renew for a new one"
        )


def _give_key(home: ServerHome, gateway: Gateway) -> None:
    folder = _folder(home, gateway.name)
    if gateway.name not in client_names(home):
        pair = make_node_key(gateway.name)
        write_credentials(home, folder, pair.private)
        add_client(home, gateway.name, pair.public, gateway.hosts)
    elif not (folder / "client.key").is_file():
        raise InputError(f"gateway {gateway.name!r}: a device outside of the cluster has this name")
    elif may_host(home, gateway.name) != parse_hosts(gateway.hosts):
        raise InputError(
            f"gateway {gateway.name!r}: may host other clients already; remove it first: "
            f"wildflower server remove-client {gateway.name} --state {home.path}"
        )


def _of_server(home: ServerHome) -> list[dict[str, Any]]:
    tls = {"tls.crt": home.certificate, "tls.key": home.key, "ca.crt": home.ca}
    return [
        _secret("wildflower-operator", {"operator.token": home.token_file}),
        {**_secret("wildflower-server-tls", tls), "type": "kubernetes.io/tls"},
        _config_map("wildflower-ca", {"ca.pem": home.ca.read_text()}),
    ]


def _of_clients(home: ServerHome) -> list[dict[str, Any]]:
    """Returns the public keys of all clients, and the private ones of the gateways here."""
    public = {path.name: path.read_text() for path in sorted(home.clients.iterdir())}
    own = [name for name in client_names(home) if (_folder(home, name) / "client.key").is_file()]
    secrets = [
        _secret(secret_name(name), {"client.key": _folder(home, name) / "client.key"})
        for name in own
    ]
    return [_config_map("wildflower-clients", public), *secrets]


def _folder(home: ServerHome, gateway: str) -> Path:
    return home.path / "gateways" / gateway


def _secret(name: str, files: dict[str, Path]) -> dict[str, Any]:
    data = {key: base64.b64encode(path.read_bytes()).decode() for key, path in files.items()}
    told = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    return {**told, "type": "Opaque", "data": data}


def _config_map(name: str, data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
