"""The server's state folder: what is in it, and who may read it.

    ca.pem ca.key          the CA of this fleet; its key is only needed by `init --renew`, so it may
                           leave the server (keep it offline, put it back to renew)
    server.pem server.key  what the server shows to those who connect
    operator.token         what opens the doors of operators
    clients/<NAME>.pub     the public keys of the devices: the truth about who may connect
    server.json            the names init was given and, while the server runs, its pid, host, port
    superlink.db .log      Flower's state, and what Flower says
    superexec.secret       with it Flower's processes know each other; another at each start
    lock                   held by the one server that runs here
    runs/<id>/             the run folders

Where somebody else keeps the keys, as Kubernetes mounts them, the first three lines are in
`KEYS/server` and the fourth in `KEYS/clients`; both are only read.

The folder is 0700; keys, the token and the secret are 0600.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.fleet.connection import Connection, is_loopback, join_address, read_token
from shared_models.errors import InputError
from shared_models.files import Opener, locked, replace_file, write_json

if TYPE_CHECKING:
    from deploy.fleet.certificates import Signed

ALWAYS = ("localhost", "127.0.0.1", "::1")
"""The names that every server's certificate has: its own processes use them."""


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        pid: The process that supervises.
        host: What it listens on.
        port: The one port of everything.
        insecure: Whether it speaks without TLS.
        superlink_pid: Flower's process, once it answers.
    """

    pid: int
    host: str
    port: int
    insecure: bool = False
    superlink_pid: int | None = None


@dataclass(frozen=True)
class ServerHome:
    """Paths in a state folder, and in the folder of its keys if that is another."""

    path: Path
    keys: Path | None = None

    @property
    def _own(self) -> Path:
        return self.path if self.keys is None else self.keys / "server"

    @property
    def lock(self) -> Path:
        """What the server that runs here holds."""
        return self.path / "lock"

    @property
    def ca(self) -> Path:
        """The CA's certificate: what devices and operators get a copy of."""
        return self._own / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The CA's key."""
        return self.path / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self._own / "server.pem"

    @property
    def key(self) -> Path:
        """The server's key."""
        return self._own / "server.key"

    @property
    def token_file(self) -> Path:
        """The operator's token."""
        return self._own / "operator.token"

    @property
    def database(self) -> Path:
        """Flower's state."""
        return self.path / "superlink.db"

    @property
    def log(self) -> Path:
        """What Flower, its processes and the ServerApps say."""
        return self.path / "superlink.log"

    @property
    def clients(self) -> Path:
        """The devices' public keys."""
        return (self.keys or self.path) / "clients"

    @property
    def runs(self) -> Path:
        """The run folders."""
        return self.path / "runs"

    @property
    def flower(self) -> Path:
        """What Flower would keep in the user's home."""
        return self.path / "flower"

    @property
    def superexec_secret(self) -> Path:
        """What the SuperLink knows its SuperExec by."""
        return self.path / "superexec.secret"

    @property
    def notes(self) -> Path:
        """`server.json`."""
        return self.path / "server.json"

    def require(self) -> None:
        """Raises `InputError` unless `wildflower server init` made this folder."""
        require_folder(self.path)
        if not self.notes.is_file():
            raise InputError(
                f"{self.path}: no server here; make one first: "
                f"wildflower server init --state {self.path} --name HOST_OR_IP"
            )

    def running(self) -> Running | None:
        """Returns the server that runs on this folder, if one does."""
        self.require()
        if not self.lock.exists():
            return None
        with locked(self.lock) as free:
            if free:
                return None
        found = _read(self.notes)
        known = {name: found[name] for name in Running.__dataclass_fields__ if name in found}
        return Running(**known) if "pid" in known else None

    def note(self, running: Running | None) -> None:
        """Writes down who runs, or that nobody does."""
        told = {} if running is None else asdict(running)
        write_json(self.notes, {"names": self.names(), **told})

    def names(self) -> list[str]:
        """Returns the names and addresses that `init` was given."""
        return [str(name) for name in _read(self.notes).get("names", [])]

    def connection(self, running: Running) -> Connection:
        """Returns how this machine reaches the server that runs here."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  looked up, not bound
        host = loopback.get(running.host, running.host)
        if running.insecure and not is_loopback(host):
            raise InputError(f"{self.notes}: --insecure on {host}, which is not this machine")
        ca = None if running.insecure else self.ca
        return Connection(join_address(host, running.port), ca, read_token(self.token_file))


def create_home(home: ServerHome, names: Sequence[str], days: int) -> None:
    """Makes the CA, the server's certificate and the operator's token; never over old ones."""
    from deploy.fleet.certificates import make_authority, make_certificate

    require_folder(home.path)
    if home.notes.exists():
        raise InputError(
            f"{home.path}: a server was made here already; add --renew for a new certificate "
            "under the same CA, or choose another --state"
        )
    if home.path.exists() and any(home.path.iterdir()):
        raise InputError(f"{home.path}: is not an empty folder; choose another --state")
    authority = make_authority()
    server = make_certificate(authority, [*ALWAYS, *names], days)  # or no names, and no folder
    home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.path.chmod(0o700)
    try:
        _fill(home, authority, server)
        write_json(home.notes, {"names": list(names)})  # last: now there is a server
    except BaseException:
        for made in home.path.iterdir():  # it was empty
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        raise


def _fill(home: ServerHome, authority: Signed, server: Signed) -> None:
    for folder in (home.clients, home.runs, home.flower):
        folder.mkdir(mode=0o700)
    write_secret(home.ca_key, authority.key)
    write_public(home.ca, authority.certificate)
    write_secret(home.key, server.key)
    write_public(home.certificate, server.certificate)
    write_secret(home.token_file, f"{secrets.token_urlsafe(32)}\n".encode())


def prepare_home(home: ServerHome) -> None:
    """Makes the state folder of a server whose keys are elsewhere; one that is there stays."""
    require_folder(home.path)
    if not home.ca.is_file() or not home.clients.is_dir():
        raise InputError(f"--keys {home.keys}: expected server/ca.pem, and a folder clients in it")
    for folder in (home.path, home.runs, home.flower):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not home.notes.exists():
        write_json(home.notes, {"names": []})


def renew_certificate(home: ServerHome, names: Sequence[str], days: int) -> list[str]:
    """Makes a new server certificate under the same CA; returns its names, old ones by default."""
    from deploy.fleet.certificates import Signed, make_certificate

    home.require()
    if not home.ca_key.is_file():
        raise InputError(f"{home.ca_key}: is not here; put the CA's key back to renew")
    kept = list(names) or home.names()
    authority = Signed(home.ca.read_bytes(), home.ca_key.read_bytes())
    server = make_certificate(authority, [*ALWAYS, *kept], days)
    write_secret(home.key, server.key)
    write_public(home.certificate, server.certificate)
    write_json(home.notes, {**_read(home.notes), "names": kept})
    return kept


def require_folder(path: Path) -> None:
    """Raises `InputError` when a file is where a state folder is, or is to be made."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise InputError(
                f"--state {path}: {'it' if place == path else place} is a file; --state is the "
                "folder that `wildflower server init` makes"
            )


def write_secret(path: Path, content: bytes) -> None:
    """Writes a file that only its owner may read, atomically; it never was readable to others."""
    replace_file(path, content, _new(0o600))


def write_public(path: Path, content: bytes) -> None:
    """Writes a file that everybody may read, atomically."""
    replace_file(path, content, _new(0o644))


def _new(mode: int) -> Opener:
    """Returns what opens a file that was not there, with these permissions from the start."""

    def opener(path: str, flags: int) -> int:
        Path(path).unlink(missing_ok=True)
        handle = os.open(path, flags | os.O_EXCL, mode)
        os.fchmod(handle, mode)  # whatever the umask says
        return handle

    return opener


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
    return found if isinstance(found, dict) else {}
