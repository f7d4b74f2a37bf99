"""The keys by which devices are known: elliptic curve pairs in OpenSSH's formats, as Flower reads.

`ssh-keygen -t ecdsa -b 384 -N "" -f client.key` makes one as well, on a device that never shows its
private key to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared_models.errors import InputError

_HOW = 'make one with: ssh-keygen -t ecdsa -b 384 -N "" -f client.key'
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclass(frozen=True)
class NodeKey:
    """A device's key pair: the private half for the device, the public one for the server."""

    private: bytes = field(repr=False)
    public: bytes


def make_node_key(comment: str = "") -> NodeKey:
    """Returns a new key pair; the comment, the client's name, is for people."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    return NodeKey(private, _openssh(key.public_key(), comment))


def read_public_key(path: Path, comment: str = "") -> bytes:
    """Returns a public key in OpenSSH's format, checked; `InputError` names what is wrong."""
    content = _content(path)
    if b"PRIVATE KEY" in content:
        raise InputError(f"{path}: a private key; the server wants the public one ({path}.pub?)")
    return _openssh(_parse(path, content), comment)


def require_private_key(path: Path) -> None:
    """Raises `InputError` unless the file holds a private key that Flower takes."""
    content = _content(path)
    if b"PRIVATE KEY" not in content:
        raise InputError(f"{path}: not a private key; {_HOW}")
    try:
        key = serialization.load_ssh_private_key(content, password=None)
    except TypeError:
        raise InputError(f"{path}: protected by a passphrase; {_HOW}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: not a private key in OpenSSH's format; {_HOW}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path}: a key of another kind than ECDSA; {_HOW}")


def registered_form(public: bytes) -> bytes:
    """Returns an OpenSSH public key as Flower registers it (PEM); equal keys have equal bytes."""
    key = serialization.load_ssh_public_key(public)
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the key cannot be read: {error.strerror}") from None


def _parse(path: Path, content: bytes) -> ec.EllipticCurvePublicKey:
    load = (
        serialization.load_pem_public_key
        if content.lstrip().startswith(b"-----BEGIN")
        else serialization.load_ssh_public_key
    )
    try:
        key = load(content.strip())
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: not a public key in OpenSSH's or PEM format; {_HOW}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        kind = type(key).__name__.removesuffix("PublicKey").lstrip("_")
        raise InputError(f"{path}: a key of another kind than ECDSA ({kind}); {_HOW}")
    if not isinstance(key.curve, _CURVES):
        raise InputError(f"{path}: the curve {key.curve.name} is none of NIST's; {_HOW}")
    return key


def _openssh(key: ec.EllipticCurvePublicKey, comment: str) -> bytes:
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return b" ".join([line, comment.encode()]).strip() + b"\n"
