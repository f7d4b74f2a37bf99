"""Ed25519 signatures of bundles; a key is a PEM file as `openssl genpkey` makes it."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from shared_models.errors import InputError

_MAKE = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"


def sign(content: bytes, key_file: Path) -> bytes:
    """Returns the signature, 64 bytes; `InputError` when the file has no private Ed25519 key."""
    try:
        key = load_pem_private_key(_read(key_file), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        raise InputError(f"{key_file}: is no private key without a password; {_MAKE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{key_file}: is no Ed25519 key; {_MAKE}")
    return key.sign(content)


def is_signed(content: bytes, signature: bytes, public_key_file: Path) -> bool:
    """Whether the signature is this key's; `InputError` when there is no public Ed25519 key."""
    try:
        key = load_pem_public_key(_read(public_key_file))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(
            f"{public_key_file}: is no public Ed25519 key; "
            "make one with `openssl pkey -in key.pem -pubout -out public.pem`"
        )
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    return path.read_bytes()
