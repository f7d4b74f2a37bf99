"""A server that stays up: starts Flower's processes, and anew when one dies; ends all it began.

They are the SuperLink and the SuperExec, which starts the ServerApps of runs. The two share a
secret: without it whoever can reach the Runtime API from this machine could take a run for himself.
In a pod the SuperExec is another container's (`executor.py`), which has no keys.

The process that runs this holds a lock on the state folder, adopts what its children leave behind
and never ends before them. If it is killed itself, they notice and end (`superlink.end_with_parent`
and Flower's own watching of parents).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from deploy.fleet.certificates import belong_together, covers, expiry
from deploy.fleet.connection import (
    answered,
    is_loopback,
    join_address,
    open_control,
    open_http,
)
from deploy.fleet.disk import bound_log, full_disk
from deploy.fleet.health import Health, HealthAddress
from deploy.fleet.home import Running, ServerHome, prepare_home, write_secret
from deploy.fleet.launch import changed, ended, secret_options, start, superexec_options
from deploy.fleet.processes import adopt_orphans, end_descendants, has_children, reap
from deploy.fleet.registry import Change, client_names, reconcile, retired
from deploy.fleet.stopping import Stop, stop_on_signals
from server.fleet_register import Register, write_register
from shared_models.errors import InputError, Interrupted, ServerError, WildflowerError, one_line
from shared_models.files import locked

START_S = 120.0
STOP_S = 10.0
_LONGEST_BACKOFF_S = 30.0
_ASK_S = 10.0
_STABLE_S = 60.0
_WARN_DAYS = 30
_RENEWED = "the SuperLink ends, as its certificate was renewed"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Listen:
    """Where a server listens.

    Attributes:
        host: An address of this machine, 0.0.0.0 for all.
        port: The one port of Flower and of the doors.
        health: Where gRPC's health service listens; None for none.
        insecure: Without TLS and node keys, for this machine alone.
        external_executor: Runs are for `wildflower server execute`, on the same state and loopback.
    """

    host: str = "0.0.0.0"  # noqa: S104  a server is there to be reached
    port: int = 8000
    health: HealthAddress | None = None
    insecure: bool = False
    external_executor: bool = False


def serve(home: ServerHome, listen: Listen, say: Say) -> None:
    """Runs the server until SIGTERM (returns) or Ctrl-C (`Interrupted`).

    Raises `InputError` when the folder, the certificate, the port or another server forbids it, and
    `ServerError` when the SuperLink does not come up at all.
    """
    if home.keys is not None:
        prepare_home(home)
    check(home, listen)
    with _held(home), stop_on_signals() as stop, Health(listen.health) as health:
        require_free(listen.host, listen.port)
        _warn(home, listen, say)
        adopt_orphans()
        try:
            _Supervisor(home, listen, say, stop, health).run()
        finally:
            end_descendants(STOP_S)
            reap()
            with contextlib.suppress(OSError):
                home.note(None)
        if stop.interrupted:
            raise Interrupted("the server was stopped")
        say("stopped")


def check(home: ServerHome, listen: Listen) -> None:
    """Raises `InputError` for what can be seen to be wrong before anything is started."""
    home.require()
    if listen.insecure:
        if not is_loopback(listen.host):
            raise InputError(
                f"--insecure --host {listen.host}: without TLS a server may only listen on "
                "this machine; add --host 127.0.0.1, or leave out --insecure"
            )
        return
    renew = _renewal(home)
    if expiry(home.certificate) <= dt.datetime.now(dt.UTC):
        ended = expiry(home.certificate).date()
        raise InputError(f"{home.certificate}: expired on {ended}; make a new one: {renew}")
    if not belong_together(home.certificate, home.key):
        raise InputError(f"{home.key}: is not the key of server.pem; make new ones: {renew}")
    if not _is_wildcard(listen.host) and not covers(home.certificate, listen.host):
        raise InputError(
            f"--host {listen.host} is not a name in {home.certificate}: {renew} "
            f"--name {listen.host}"
        )


def require_free(host: str, port: int) -> None:
    """Raises `InputError` unless the address can be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"{join_address(host, port)}: cannot be listened on: {reason}; choose another port "
                "or --host"
            ) from None


class _Supervisor:
    """One SuperLink and SuperExec after the other, until it is stopped."""

    def __init__(
        self, home: ServerHome, listen: Listen, say: Say, stop: Stop, health: Health
    ) -> None:
        self._home = home
        self._listen = listen
        self._say = say
        self._stop = stop
        self._health = health
        self._running = Running(os.getpid(), listen.host, listen.port, listen.insecure)
        self._connection = home.connection(self._running)
        self._shown: object = None  # when the certificate that the SuperLink shows was written
        self._registered: int | None = None  # when the keys that Flower knows were changed
        self._tried = -_ASK_S  # when that failed last
        self._asked = 0.0
        self._is_full = False
        self._ready = False

    def run(self) -> None:
        """Returns when it was asked to stop."""
        backoff = 1.0
        first = True
        while not self._stop.within(0):
            begun = time.monotonic()
            self._note(self._running)
            why = self._watched(first=first)
            self._health.beat(ready=False)
            if why is None:
                return
            first = False
            end_descendants(grace_s=2)  # what is left: SuperLink or SuperExec, and ServerApps
            reap()
            backoff = 1.0 if time.monotonic() - begun > _STABLE_S or why == _RENEWED else backoff
            self._say(f"{why}; it is started anew in {backoff:g} s")
            self._stop.within(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF_S)

    def _watched(self, *, first: bool) -> str | None:
        try:
            return self._watch(first=first)
        except OSError as error:  # a full disk may have room again later
            if first:
                raise
            return f"{error.filename or self._home.path}: {error.strerror}"

    def _watch(self, *, first: bool) -> str | None:
        """Runs Flower's two processes; returns why they end, None when the server is to stop."""
        self._shown = _shown(self._home)
        self._connection = self._home.connection(self._running)  # the token may be another
        # Who knows another is of a SuperLink that is gone, as the SuperExec of a pod's executor.
        write_secret(self._home.superexec_secret, secrets.token_bytes(32))
        superlink = start(self._home, "superlink", _superlink_options(self._home, self._listen))
        processes = {"SuperLink": superlink}
        deadline = time.monotonic() + START_S
        is_up = False
        while not self._stop.within(0.5 if is_up else 0.1):
            if (why := ended(processes)) is not None:
                if first and not is_up:
                    raise ServerError(f"{why}: {_last(self._home)}")
                return why
            if not is_up and self._answers():
                is_up = True
                processes |= self._begin(superlink.pid)
            if not is_up and time.monotonic() > deadline:
                superlink.kill()
            if is_up and self._is_renewed(processes.get("SuperExec")):
                return _RENEWED
            if is_up:
                self._take_up_clients()
            self._health.beat(ready=is_up and self._is_ready())
            bound_log(self._home.log)
        return None

    def _is_renewed(self, superexec: subprocess.Popen[bytes] | None) -> bool:
        """Whether there is another certificate than the one shown, and nobody is at work."""
        shown = _shown(self._home)
        if self._listen.insecure or shown == self._shown or self._is_at_work(superexec):
            return False
        self._shown = shown
        try:
            check(self._home, self._listen)
        except InputError as error:
            self._say(f"the certificate that was there before is kept: {error}")
            return False
        return True

    def _is_at_work(self, superexec: subprocess.Popen[bytes] | None) -> bool:
        if superexec is not None:
            return has_children(superexec.pid)
        from deploy.fleet.remote import Remote

        with contextlib.suppress(WildflowerError), Remote(self._connection) as remote:
            return any(not run.is_over for run in remote.flower_runs())
        return True

    def _take_up_clients(self) -> None:
        """Registers who has a key now, and shuts out who has none any more, until it is done.

        It is tried again: a removal that failed would leave a device admitted. Of changes in its
        own folder the command line tells; those of a mounted one are seen here.
        """
        now, found = time.monotonic(), changed(self._home.clients)
        is_done = found == self._registered or (self._registered and self._home.keys is None)
        if self._listen.insecure or is_done or now - self._tried < _ASK_S:
            return
        if self._reconcile():
            self._registered = found
        else:
            self._tried = now

    def _is_ready(self) -> bool:
        """Whether the SuperLink still answers, which it is asked now and then."""
        if time.monotonic() - self._asked > _ASK_S:
            self._asked = time.monotonic()
            self._ready = self._answers()
            self._look_at_disk()
        return self._ready

    def _look_at_disk(self) -> None:
        full = full_disk(self._home.path)
        if full and not self._is_full:
            self._say(f"{full}: until then runs may fail")
        self._is_full = full is not None

    def _answers(self) -> bool:
        with (
            contextlib.suppress(WildflowerError),
            answered(self._connection),
            open_http(self._connection, timeout=5) as http,
        ):
            return bool(http.get("/health").status_code == 200)
        return False

    def _begin(self, pid: int) -> dict[str, subprocess.Popen[bytes]]:
        """Starts the SuperExec of a SuperLink that answers, and says that the server is up."""
        if self._listen.insecure:
            write_register(self._home.path, Register())  # without keys nobody is known
        else:
            self._registered, self._tried = None, -_ASK_S
            self._take_up_clients()  # who is told that the server is up finds them registered
        processes = {}
        if not self._listen.external_executor:
            options = superexec_options(self._home, self._connection)
            processes["SuperExec"] = start(self._home, "superexec", options)
        self._note(replace(self._running, superlink_pid=pid))
        scheme = "http" if self._listen.insecure else "https"
        where = f"{scheme}://{join_address(self._listen.host, self._listen.port)}"
        known = len(client_names(self._home))
        clients = "1 client" if known == 1 else f"{known} clients"
        self._say(f"listening on {where} (SuperLink {pid}), {clients} known")
        return processes

    def _note(self, running: Running) -> None:
        try:
            self._home.note(running)
        except OSError as error:  # a full disk may have room again later
            self._say(f"{self._home.notes}: cannot be written: {error.strerror}")

    def _reconcile(self) -> bool:
        try:
            with answered(self._connection), open_control(self._connection) as control:
                self._tell(reconcile(self._home, control))
        except WildflowerError as error:
            self._say(f"clients could not be registered: {error}; trying again")
            return False
        return True

    def _tell(self, change: Change) -> None:
        if change.registered:
            self._say(f"registered {', '.join(change.registered)}")
        if change.removed:
            self._say(f"unregistered {change.removed} that have no key in {self._home.clients}")
        for name in change.retired:
            self._say(f"client {name!r}: {retired(name)}")


def _superlink_options(home: ServerHome, listen: Listen) -> list[str]:
    options = ["--host", listen.host, "--port", str(listen.port)]
    # Flower heeds the secret in this mode only, in which SuperExec is for us to start.
    options += ["--isolation", "process", *secret_options(home)]
    options += ["--database", str(home.database), "--disable-runtime-dependency-installation"]
    if listen.insecure:
        return [*options, "--insecure"]
    files = {"ca-certfile": home.ca, "certfile": home.certificate, "keyfile": home.key}
    for option, path in files.items():
        options += [f"--ssl-{option}", str(path)]
    return [*options, "--enable-supernode-auth"]


@contextlib.contextmanager
def _held(home: ServerHome) -> Iterator[None]:
    home.lock.touch(mode=0o600)
    for _ in range(5):  # somebody may be looking whether a server runs, for a moment
        with locked(home.lock) as free:
            if free:
                yield
                return
        time.sleep(0.1)
    running = home.running()
    who = "another process" if running is None else f"process {running.pid}"
    raise InputError(f"{home.path}: {who} runs a server on this state; stop it first")


def _warn(home: ServerHome, listen: Listen, say: Say) -> None:
    left = expiry(home.certificate) - dt.datetime.now(dt.UTC)
    if not listen.insecure and left.days < _WARN_DAYS:
        say(f"{home.certificate}: expires in {left.days} days; renew it: {_renewal(home)}")


def _renewal(home: ServerHome) -> str:
    return f"wildflower server init --state {home.path} --renew"


def _is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::")  # noqa: S104  compared, not bound


def _shown(home: ServerHome) -> object:
    return changed(home.certificate), changed(home.token_file)


def _last(home: ServerHome) -> str:
    if full := full_disk(home.path):
        return full
    lines = [line for line in home.log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{one_line(lines[-1]) if lines else 'it said nothing'} (see {home.log})"
