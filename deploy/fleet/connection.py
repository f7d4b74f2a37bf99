"""How a server is reached: its address, the CA that vouches for it, the operator's token."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_models.errors import InputError, ServerError, one_line

if TYPE_CHECKING:
    import httpx
    from flwr.supercore.control.control_http_client import ControlHttpClient

DEFAULT_PORT = 8000
TOKEN_HEADER = "X-Wildflower-Token"  # noqa: S105  the name of a header, not a secret


class NotReached(ServerError):
    """Nobody answers there, so nothing can have come of what was asked."""


@dataclass(frozen=True)
class Connection:
    """Where a server listens and what opens its doors.

    Attributes:
        address: HOST:PORT, an IPv6 host in brackets.
        ca: The certificate of the CA that signed the server's; None means without TLS, which only
            a server on this machine may be.
        token: The operator's token, for the doors that ask for one.
        token_file: The file that it is in.
    """

    address: str
    ca: Path | None
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None

    @property
    def url(self) -> str:
        """The server's URL, without a path."""
        return f"{'http' if self.ca is None else 'https'}://{self.address}"


def read_connection(
    server: str, ca: Path | None, token_file: Path | None, *, insecure: bool = False
) -> Connection:
    """Returns what the options of a command say; `InputError` when they contradict each other."""
    host, port = parse_address(server)
    if insecure and not is_loopback(host):
        raise InputError(
            f"--insecure: {host} is not this machine (localhost, 127.0.0.1, ::1); give --ca FILE"
        )
    if insecure == (ca is not None):
        raise InputError(
            "--ca and --insecure contradict each other; leave one out"
            if insecure
            else "--ca FILE is missing: the ca.pem that `wildflower server init` made"
        )
    if ca is not None:
        trust(ca)
    token = None if token_file is None else read_token(token_file)
    return Connection(join_address(host, port), ca, token, token_file)


def parse_address(server: str) -> tuple[str, int]:
    """Returns host and port of HOST, HOST:PORT or [IPV6]:PORT.

    >>> parse_address("example.org"), parse_address("[::1]:9000")
    (('example.org', 8000), ('::1', 9000))
    """
    host, colon, port = server.rpartition(":")
    if not colon or (server.startswith("[") and server.endswith("]")):
        host, port = server, str(DEFAULT_PORT)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    brackets = bare != host
    valid = _is_name(bare) and not set(bare) & set("/@?# []") and (":" in bare) == brackets
    if not valid or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65536:
        raise InputError(f"--server {server!r} is not HOST:PORT (for example 192.168.1.10:8000)")
    return bare, int(port)


def _is_name(host: str) -> bool:
    """Whether a name can be looked up: none of its parts is empty, or too long."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def join_address(host: str, port: int) -> str:
    """Returns HOST:PORT, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """Returns the token in a file; `InputError` when there is none."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a token"
        raise InputError(f"{path}: the operator's token cannot be read: {reason}") from None
    if not token or not token.isprintable() or " " in token:
        raise InputError(f"{path}: no operator's token in it; copy operator.token of the server")
    return token


def trust(ca: Path) -> ssl.SSLContext:
    """Returns a TLS context that trusts this CA alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError:
        raise InputError(f"{ca}: not a PEM certificate; copy ca.pem of the server") from None
    except OSError as error:
        raise InputError(f"{ca}: the CA cannot be read: {error.strerror}") from None
    return context


def open_control(connection: Connection) -> ControlHttpClient:
    """Returns a client of Flower's Control API, a context manager.

    No Flower config file is read and no local SuperLink is started, as `flwr run` would.
    """
    from flwr.supercore.control.control_http_client import ControlHttpClient

    interceptors = [] if connection.token is None else [_TokenSender(connection.token)]
    verify = True if connection.ca is None else trust(connection.ca)
    return ControlHttpClient(connection.url, interceptors=interceptors, verify=verify)


def open_http(connection: Connection, timeout: float = 30.0) -> httpx.Client:
    """Returns a client of the server's own routes, a context manager."""
    import httpx

    headers = {} if connection.token is None else {TOKEN_HEADER: connection.token}
    verify = True if connection.ca is None else trust(connection.ca)
    return httpx.Client(base_url=connection.url, headers=headers, verify=verify, timeout=timeout)


@contextlib.contextmanager
def answered(connection: Connection) -> Iterator[None]:
    """Turns what goes wrong on the way into our own errors, by what a person can do about it.

    `InputError` where the address, the certificate or the token is not right, `ServerError` where
    the server does not answer, or refuses.
    """
    import httpx

    where = connection.address
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _refusal(where, error.response) from None
    except httpx.TransportError as error:
        is_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        raise _unreachable(where, str(error) or type(error).__name__, is_sent=is_sent) from None
    except httpx.InvalidURL as error:
        raise InputError(f"--server {where}: is no address: {one_line(str(error))}") from None
    except ValueError as error:  # what Flower's client makes of bytes that are no answer
        raise ServerError(f"{where}: is no Wildflower server: {one_line(str(error))}") from None


class _TokenSender:
    """Adds the operator's token to every call of the Control API."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Any) -> Any:
        context.request.headers[TOKEN_HEADER] = self._token
        return call_next(context)


def _refusal(where: str, response: httpx.Response) -> InputError | ServerError:
    if response.status_code in (401, 403):
        return InputError(
            f"{where}: the operator's token is missing or wrong; give the server's operator.token "
            "by --token"
        )
    response.read()
    told = one_line(response.text) or response.reason_phrase
    return ServerError(f"{where}: answered {response.status_code}: {told}")


def _unreachable(where: str, told: str, *, is_sent: bool) -> InputError | ServerError:
    if "CERTIFICATE_VERIFY_FAILED" not in told:
        kind = ServerError if is_sent else NotReached
        return kind(f"{where}: does not answer: {one_line(told)}")
    why = told.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or told
    return InputError(
        f"{where}: its certificate is not trusted ({one_line(why)}); give the server's ca.pem by "
        "--ca, and an address that is in its certificate"
    )
