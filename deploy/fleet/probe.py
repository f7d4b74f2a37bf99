"""What is wrong between a device and its server, in words."""

from __future__ import annotations

import socket
import ssl

from deploy.fleet.connection import Connection, parse_address, trust

_PATIENCE_S = 10.0
_ANSWER_S = 2.0
_QUESTION = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# OpenSSL's numbers for what a certificate may be (X509_V_ERR_...).
_EXPIRED, _NOT_YET, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64


def fault_of(connection: Connection, patience_s: float = _PATIENCE_S) -> str | None:
    """Returns why a server cannot be talked to in safety, or None."""
    host, port = parse_address(connection.address)
    try:
        with socket.create_connection((host, port), patience_s) as plain:
            if connection.ca is None:
                return _plain_fault(plain, connection.address)
            trust(connection.ca).wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return _certificate_fault(error, host)
    except ssl.SSLError:
        return f"{connection.address} does not speak TLS"
    except TimeoutError:
        return f"{connection.address} did not answer within {patience_s:g} s"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return f"{connection.address} cannot be reached: {reason}"
    return None


def _plain_fault(plain: socket.socket, address: str) -> str | None:
    """Returns a fault when who listens wants TLS: it hangs up on a question without."""
    plain.settimeout(_ANSWER_S)
    try:
        plain.sendall(_QUESTION)
        answer = plain.recv(16)
    except TimeoutError:
        return None  # busy, or about to come up: Flower will tell
    except ConnectionError:
        answer = b""
    if answer.startswith(b"HTTP/"):
        return None
    return (
        f"{address} hangs up on who comes without TLS; leave out --insecure and give "
        "--credentials, the folder that `wildflower server add-client` made"
    )


def _certificate_fault(error: ssl.SSLCertVerificationError, host: str) -> str:
    if error.verify_code == _EXPIRED:
        return (
            "the server's certificate has expired: on the server, `wildflower server init --renew`"
        )
    if error.verify_code == _NOT_YET:
        return "the server's certificate is not valid yet: is this device's clock right?"
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        return (
            f"the server's certificate is for other names than {host}: on the server, "
            f"`wildflower server init --renew --name {host}`"
        )
    return "the server's certificate is not signed by this device's ca.pem: is it the right server?"
