"""The devices that may connect: a public key each, in `clients/<NAME>.pub`.

Beside it, `<NAME>.hosts` names the clients that the device may host; without it, it may host any
that no other was given. The files are the truth. `reconcile` makes Flower's database agree with
them, and the register that runs read: it is called when the server starts and when a client is
added or removed while it runs, and may be called at any time.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.fleet.connection import answered, open_control
from deploy.fleet.home import ServerHome, write_public, write_secret
from deploy.fleet.hosts import parse_hosts
from server.fleet_register import Register, Registered, write_register
from shared_models.errors import InputError, ServerError, did_you_mean

if TYPE_CHECKING:
    from flwr.supercore.control.control_http_client import ControlHttpClient

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNREGISTERED = "unregistered"


@dataclass(frozen=True)
class Change:
    """What `reconcile` did: names that were registered, keys that were removed, and names that
    Flower does not take back because their key was removed before.
    """  # noqa: D205  one sentence

    registered: tuple[str, ...]
    removed: int
    retired: tuple[str, ...]


def client_names(home: ServerHome) -> list[str]:
    """Returns the names of the clients."""
    return sorted(path.stem for path in home.clients.glob("*.pub"))


def add_client(
    home: ServerHome, name: str, public: bytes, hosts: str | None = None
) -> Change | None:
    """Adds a client by its public key (OpenSSH); None when the server does not run.

    `hosts` are the ids that it may host, like "0-99"; None for any that no other was given. Raises
    `InputError` when the name, the key or an id is another's already, or the key was removed
    before.
    """
    from deploy.fleet.node_keys import registered_form

    home.require()
    require_name(name)
    path = _key_file(home, name)
    if path.exists():
        raise InputError(f"client {name!r} exists; remove it first, or choose another name")
    if other := _keys(home).get(registered_form(public)):
        raise InputError(f"this key is known already: it is the one of client {other!r}")
    _require_free_ids(home, hosts)
    if hosts is not None:
        write_public(_hosts_file(home, name), f"{hosts}\n".encode())
    write_public(path, public)
    try:
        change = _reconcile_running(home)
    except BaseException:
        _forget(home, name)
        raise
    if change and name in change.retired:
        _forget(home, name)
        raise InputError(f"client {name!r}: {retired(name)}")
    return change


def _require_free_ids(home: ServerHome, hosts: str | None) -> None:
    wanted = set(parse_hosts(hosts)) if hosts is not None else set()
    for other in client_names(home):
        if taken := wanted & set(may_host(home, other) or ()):
            raise InputError(f"--hosts {hosts}: client {min(taken)} belongs to {other!r} already")


def remove_client(home: ServerHome, name: str) -> Change | None:
    """Removes a client; None when the server does not run, and learns of it when it starts."""
    home.require()
    require_name(name)
    path = _key_file(home, name)
    if not path.exists():
        known = client_names(home)
        hint = did_you_mean(name, known) if known else "there are none"
        raise InputError(f"client {name!r} does not exist; {hint}")
    _forget(home, name)
    return _reconcile_running(home)


def may_host(home: ServerHome, name: str) -> tuple[int, ...] | None:
    """Returns the ids of the clients that a device may host; None for any."""
    path = _hosts_file(home, name)
    return parse_hosts(path.read_text().strip()) if path.exists() else None


def _forget(home: ServerHome, name: str) -> None:
    _key_file(home, name).unlink(missing_ok=True)
    _hosts_file(home, name).unlink(missing_ok=True)


def reconcile(home: ServerHome, control: ControlHttpClient) -> Change:
    """Registers the keys that Flower lacks, and unregisters those that have no file."""
    import httpx

    try:
        return _reconcile(home, control)
    except httpx.HTTPStatusError:  # somebody else was faster
        return _reconcile(home, control)


def _reconcile(home: ServerHome, control: ControlHttpClient) -> Change:
    from flwr.proto.control_pb2 import RegisterNodeRequest, UnregisterNodeRequest

    nodes = _nodes(control)
    keys = _keys(home)
    active = {key: node for key, node in nodes.items() if node.status != _UNREGISTERED}
    for key in active.keys() - keys.keys():
        control.UnregisterNode(UnregisterNodeRequest(node_id=active[key].node_id))
    new = {key: name for key, name in keys.items() if key not in nodes}
    for key, name in new.items():
        control.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
    _write_register(home, keys, _nodes(control) if new else nodes)
    retired_names = (keys[key] for key in keys.keys() & (nodes.keys() - active.keys()))
    return Change(
        tuple(sorted(new.values())),
        len(active.keys() - keys.keys()),
        tuple(sorted(retired_names)),
    )


def _write_register(
    home: ServerHome, keys: Mapping[bytes, str], nodes: Mapping[bytes, Any]
) -> None:
    known = {nodes[key].node_id: name for key, name in keys.items() if key in nodes}
    write_register(
        home.path,
        Register({node: Registered(name, may_host(home, name)) for node, name in known.items()}),
    )


def describe_clients(home: ServerHome) -> list[dict[str, Any]]:
    """Returns name, whom it may host, node id, status and when it was last seen, of each client.

    Status is online, offline, created (was never here), unregistered, or "server not running".
    """
    running = home.running()
    if running is None:
        return [_row(home, name, None, "server not running") for name in client_names(home)]
    connection = home.connection(running)
    with answered(connection), open_control(connection) as control:
        nodes = _nodes(control)
    keys = {name: key for key, name in _keys(home).items()}
    return [_row(home, name, nodes.get(keys[name]), "unregistered") for name in sorted(keys)]


def write_credentials(home: ServerHome, folder: Path, private: bytes | None) -> list[Path]:
    """Writes what a device needs into a folder: the CA, and the private key if we made it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    written = [folder / "ca.pem"]
    write_public(written[0], home.ca.read_bytes())
    if private is not None:
        written.append(folder / "client.key")
        write_secret(written[1], private)
    return written


@contextlib.contextmanager
def credentials(
    home: ServerHome, folder: Path | None, private: bytes | None
) -> Iterator[list[Path]]:
    """Yields what was written for a device, if there is a folder for it.

    If the device is not let in after all, what was not there before is gone.
    """
    before = set() if folder is None or not folder.exists() else {folder, *folder.iterdir()}
    written = [] if folder is None else write_credentials(home, folder, private)
    try:
        yield written
    except BaseException:
        for path in [path for path in written if path not in before]:
            path.unlink()
        if folder is not None and folder not in before and not any(folder.iterdir()):
            folder.rmdir()
        raise


def require_name(name: str) -> None:
    """Raises `InputError` unless a client may be called so."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"client {name!r}: a name has letters, digits, '.', '_' and '-', begins with a letter "
            "or a digit, and has at most 64 of them"
        )


def retired(name: str) -> str:
    """Returns what to do about a key that Flower does not take back."""
    return f"its key was removed before and cannot come back; give {name} a new key"


def _reconcile_running(home: ServerHome) -> Change | None:
    running = home.running()
    if running is None or running.insecure:
        return None
    connection = home.connection(running)
    try:
        with answered(connection), open_control(connection) as control:
            return reconcile(home, control)
    except ServerError:
        if running.superlink_pid is None:
            return None  # it starts: it reconciles when it is up
        raise


def _nodes(control: ControlHttpClient) -> Mapping[bytes, Any]:
    from flwr.proto.control_pb2 import ListNodesRequest

    return {node.public_key: node for node in control.ListNodes(ListNodesRequest()).nodes_info}


def _keys(home: ServerHome) -> dict[bytes, str]:
    from deploy.fleet.node_keys import read_public_key, registered_form

    files = {name: _key_file(home, name) for name in client_names(home)}
    return {registered_form(read_public_key(path)): name for name, path in files.items()}


def _key_file(home: ServerHome, name: str) -> Path:
    return home.clients / f"{name}.pub"


def _hosts_file(home: ServerHome, name: str) -> Path:
    return home.clients / f"{name}.hosts"


def _row(home: ServerHome, name: str, node: Any, otherwise: str) -> dict[str, Any]:
    path = _hosts_file(home, name)
    known = {"name": name, "hosts": path.read_text().strip() if path.exists() else None}
    if node is None:
        return {**known, "node_id": None, "status": otherwise, "last_seen": None}
    status = "created" if node.status == "registered" else node.status
    return {
        **known,
        "node_id": str(node.node_id),  # larger than what JSON's readers take for an integer
        "status": status,
        "last_seen": _last_seen(node),
    }


def _last_seen(node: Any) -> str | None:
    if node.status == "online":
        return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    if node.status == "registered" or not node.last_activated_at:
        return None
    if node.last_deactivated_at:
        return dt.datetime.fromisoformat(node.last_deactivated_at).isoformat(timespec="seconds")
    return dt.datetime.fromtimestamp(node.online_until, dt.UTC).isoformat(timespec="seconds")
