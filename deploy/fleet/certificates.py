"""The CA of a fleet, and the certificate that it gives to the server.

One CA for all: devices and operators trust it alone, none of the public ones. Its key signs nothing
but the server's certificate, once a year, so it may be kept away from the server.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared_models.errors import InputError

AUTHORITY_DAYS = 3650
_SKEW = dt.timedelta(days=1)  # a device's clock may be late
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True)
class Signed:
    """A certificate and the key that belongs to it, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


def make_authority(days: int = AUTHORITY_DAYS) -> Signed:
    """Returns a new CA: it may sign servers' certificates, and no further CAs."""
    key = ec.generate_private_key(ec.SECP384R1())
    serial = x509.random_serial_number()
    name = _common_name(f"Wildflower fleet CA {serial:x}"[:36])
    builder = (
        _builder(name, name, key.public_key(), days)
        .serial_number(serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return Signed(_pem(builder.sign(key, hashes.SHA384())), _private_pem(key))


def make_certificate(authority: Signed, names: Sequence[str], days: int = 365) -> Signed:
    """Returns a server's certificate and key for DNS names and IP addresses.

    It ends with the CA at the latest. `InputError` when a name is none, or the CA has expired.
    """
    issuer, issuer_key = _load(authority)
    if issuer.not_valid_after_utc <= dt.datetime.now(dt.UTC):
        raise InputError("the CA has expired; make a new server with `wildflower server init`")
    key = ec.generate_private_key(ec.SECP256R1())
    unique = [subject_name(name) for name in dict.fromkeys(names)]
    builder = (
        _builder(_common_name(_shown(names)), issuer.subject, key.public_key(), days, issuer)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(unique), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    return Signed(_pem(builder.sign(issuer_key, hashes.SHA384())), _private_pem(key))


def subject_name(name: str) -> x509.GeneralName:
    """Returns a name or an address as a certificate holds it; `InputError` when it is neither."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        numeric = re.fullmatch(r"[0-9.]+", name)
        if numeric or len(name) > 253 or not _DNS.fullmatch(name):
            raise InputError(
                f"--name {name!r} is neither a host name nor an IP address (no port, no https://)"
            ) from None
        return x509.DNSName(name)


def covers(certificate: Path, host: str) -> bool:
    """Whether a client that connects to this host or address will accept the certificate."""
    loaded = _read_certificate(certificate)
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    wanted = subject_name(host)
    return any(isinstance(name, type(wanted)) and name.value == wanted.value for name in names)


def expiry(certificate: Path) -> dt.datetime:
    """Returns when a certificate ends."""
    return _read_certificate(certificate).not_valid_after_utc


def belong_together(certificate: Path, key: Path) -> bool:
    """Whether a key is the one of a certificate."""
    try:
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return False
    return loaded.public_key() == _read_certificate(certificate).public_key()


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path}: not a PEM certificate") from None


def _load(authority: Signed) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate)
        key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError):
        raise InputError("ca.pem or ca.key is damaged; put back a copy") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or (
        key.public_key() != certificate.public_key()
    ):
        raise InputError("ca.key is not the key of ca.pem; put back the right one")
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    authority: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    end = now + dt.timedelta(days=days)
    if authority is not None:
        end = min(end, authority.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .not_valid_before(min(now, end) - _SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _shown(names: Sequence[str]) -> str:
    # Only for people who look at it: clients go by the alternative names.
    return names[-1] if len(names[-1]) <= 64 else "wildflower-server"


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
