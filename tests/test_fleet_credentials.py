"""Whom a fleet trusts: its CA, the server's certificate, devices' keys, the operator's token."""

from __future__ import annotations

import contextlib
import datetime as dt
import resource
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from deploy.cli import run
from deploy.fleet.certificates import Signed, covers, expiry, make_authority, make_certificate
from deploy.fleet.connection import (
    Connection,
    is_loopback,
    join_address,
    parse_address,
    read_connection,
    trust,
)
from deploy.fleet.home import ServerHome, create_home, renew_certificate
from deploy.fleet.node_keys import make_node_key, read_public_key, registered_form
from deploy.fleet.node_keys import require_private_key as require_private
from shared_models.errors import InputError


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    home = ServerHome(tmp_path / "state")
    create_home(home, ["fleet.example.org", "192.0.2.7"], 365)
    return home


@contextlib.contextmanager
def listening(certificate: Path, key: Path) -> Iterator[int]:
    """A TLS server that shakes hands, until it is not needed any more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_shake_hands, args=(server, context))
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _shake_hands(server: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with contextlib.suppress(OSError), connection:
            context.wrap_socket(connection, server_side=True).close()


def connect(port: int, ca: Path, name: str) -> None:
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        trust(ca).wrap_socket(plain, server_hostname=name),
    ):
        pass


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_certificate_is_accepted_under_each_of_its_names_and_no_other(home: ServerHome) -> None:
    names = ("localhost", "127.0.0.1", "::1", "fleet.example.org", "192.0.2.7")
    with listening(home.certificate, home.key) as port:
        for name in names:
            connect(port, home.ca, name)
            assert covers(home.certificate, name)
        for name in ("other.example.org", "192.0.2.8"):
            with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
                connect(port, home.ca, name)
            assert not covers(home.certificate, name)


def test_another_fleet_s_ca_does_not_vouch_for_it(home: ServerHome, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(make_authority().certificate)
    with (
        listening(home.certificate, home.key) as port,
        pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"),
    ):
        connect(port, other, "localhost")


def test_openssl_accepts_the_chain_when_it_is_strict(home: ServerHome) -> None:
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
    subprocess.run([*command, "-CAfile", home.ca, home.certificate], check=True)


def test_a_server_s_certificate_cannot_sign_another(home: ServerHome, tmp_path: Path) -> None:
    forged = make_certificate(
        Signed(home.certificate.read_bytes(), home.key.read_bytes()), ["localhost"]
    )
    chain, key = tmp_path / "chain.pem", tmp_path / "forged.key"
    chain.write_bytes(forged.certificate + home.certificate.read_bytes())
    key.write_bytes(forged.key)
    with listening(chain, key) as port, pytest.raises(ssl.SSLCertVerificationError):
        connect(port, home.ca, "localhost")


def test_the_ca_lasts_ten_years_and_the_server_as_long_as_asked(home: ServerHome) -> None:
    left = expiry(home.ca) - dt.datetime.now(dt.UTC)
    assert 3640 < left.days < 3651
    assert (expiry(home.certificate) - dt.datetime.now(dt.UTC)).days == 364
    renew_certificate(home, [], 100_000)
    assert expiry(home.certificate) == expiry(home.ca)  # with the CA at the latest


def test_secrets_are_for_their_owner_alone(home: ServerHome) -> None:
    assert mode(home.path) == 0o700
    assert [mode(p) for p in (home.ca_key, home.key, home.token_file)] == [0o600] * 3
    assert [mode(p) for p in (home.ca, home.certificate)] == [0o644] * 2


def test_init_is_done_once_and_renewal_keeps_the_ca_and_the_names(
    home: ServerHome, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (home.ca, home.token_file, home.certificate)}
    state = str(home.path)
    assert run(["server", "init", "--state", state]) == 2
    assert "--renew" in capsys.readouterr().err
    assert run(["server", "init", "--state", state, "--renew", "--days", "30"]) == 0
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert changed == {home.certificate}
    assert home.names() == ["fleet.example.org", "192.0.2.7"]
    with listening(home.certificate, home.key) as port:
        connect(port, home.ca, "fleet.example.org")


def test_the_ca_s_key_may_leave_the_server_until_it_is_renewed(home: ServerHome) -> None:
    home.ca_key.unlink()
    home.require()
    with pytest.raises(InputError, match=r"ca\.key: is not here; put the CA's key back"):
        renew_certificate(home, [], 365)


@pytest.mark.parametrize("name", ["https://a.org", "a.org:8000", "a b", "", "1.2.3", "ä.org"])
def test_what_is_no_name_is_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    assert run(["server", "init", "--state", str(tmp_path / "s"), "--name", name]) == 2
    assert run(["server", "init", "--state", str(tmp_path / "s"), "--name", "a.org"]) == 0


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    tmp_path.chmod(0o755)
    assert run(["server", "init", "--state", str(tmp_path)]) == 2
    assert (mode(tmp_path), [p.name for p in tmp_path.iterdir()]) == (0o755, ["mine"])


def test_a_node_key_is_what_ssh_keygen_and_flower_read(tmp_path: Path) -> None:
    pair = make_node_key("alice")
    private, public = tmp_path / "client.key", tmp_path / "client.pub"
    private.write_bytes(pair.private)
    private.chmod(0o600)
    public.write_bytes(pair.public)
    told = subprocess.run(["ssh-keygen", "-y", "-f", private], check=True, capture_output=True)
    assert registered_form(told.stdout) == registered_form(pair.public)
    require_private(private)
    loaded = serialization.load_ssh_private_key(pair.private, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    assert loaded.curve.name == "secp384r1"


def test_a_device_s_own_key_is_taken_in_both_formats(tmp_path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(tmp_path / "k")]
    subprocess.run(command, check=True)
    public = read_public_key(tmp_path / "k.pub", "bob")
    assert public.endswith(b" bob\n")
    (tmp_path / "k.pem").write_bytes(registered_form(public))
    assert read_public_key(tmp_path / "k.pem", "bob") == public
    require_private(tmp_path / "k")


def bad_keys() -> dict[str, bytes]:
    encoding, formats = serialization.Encoding, serialization.PublicFormat
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    koblitz = ec.generate_private_key(ec.SECP256K1()).public_key()
    return {
        "a private key": make_node_key().private,
        "Ed25519": edwards.public_bytes(encoding.OpenSSH, formats.OpenSSH),
        "secp256k1 is none of NIST's": koblitz.public_bytes(
            encoding.PEM, formats.SubjectPublicKeyInfo
        ),
        "not a public key": b"ecdsa-sha2-nistp384 AAAA broken",
    }


@pytest.mark.parametrize("reason", bad_keys())
def test_a_key_that_cannot_be_used_is_refused_with_the_reason(reason: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(bad_keys()[reason])
    with pytest.raises(InputError, match=reason) as refused:
        read_public_key(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_clients_are_added_and_removed_while_no_server_runs(
    home: ServerHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--state", str(home.path)]
    out = tmp_path / "device"
    assert run(["server", "add-client", "alice", *at, "--out", str(out)]) == 0
    assert mode(out / "client.key") == 0o600
    assert (out / "ca.pem").read_bytes() == home.ca.read_bytes()
    copy = tmp_path / "copy.pub"
    copy.write_bytes((home.clients / "alice.pub").read_bytes())
    assert run(["server", "add-client", "bob", *at, "--public-key", str(copy)]) == 2
    assert "client 'alice'" in capsys.readouterr().err
    assert run(["server", "add-client", "alice", *at, "--out", str(tmp_path / "again")]) == 2
    assert not (tmp_path / "again").exists()
    held = ["--public-key", str(copy), "--out", str(out)]  # what alice was given stays
    assert run(["server", "add-client", "bob", *at, *held]) == 2
    assert {path.name for path in out.iterdir()} == {"ca.pem", "client.key"}
    assert run(["server", "remove-client", "alic", *at]) == 2
    assert "did you mean 'alice'?" in capsys.readouterr().err
    assert run(["server", "remove-client", "alice", *at]) == 0
    assert list(home.clients.iterdir()) == []


@pytest.mark.parametrize("name", ["../alice", ".alice", "a/b", "", "a" * 65, "a b"])
def test_a_client_s_name_is_no_path(name: str, home: ServerHome, tmp_path: Path) -> None:
    at = ["--state", str(home.path), "--out", str(tmp_path / "device")]
    assert run(["server", "add-client", name, *at]) == 2
    assert run(["server", "remove-client", name, *at[:2]]) == 2
    assert not (tmp_path / "device").exists()


def test_a_server_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, room[1]))  # bytes a file: as good as a full disk
    try:
        with pytest.raises(OSError, match=r"ca\.key"):
            create_home(ServerHome(tmp_path / "server"), [], 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    assert list((tmp_path / "server").iterdir()) == []
    create_home(ServerHome(tmp_path / "server"), [], 30)


def test_a_connection_is_what_the_options_say(home: ServerHome) -> None:
    token = home.token_file.read_text().strip()
    found = read_connection("[::1]:9000", home.ca, home.token_file)
    assert found == Connection("[::1]:9000", home.ca, token, home.token_file)
    assert token not in repr(found)
    assert found.url == "https://[::1]:9000"
    assert read_connection("localhost", None, None, insecure=True).url == "http://localhost:8000"


@pytest.mark.parametrize(
    ("server", "ca", "token", "insecure", "reason"),
    [
        ("a.org:8000", None, None, False, "--ca FILE is missing"),
        ("a.org:8000", None, None, True, "is not this machine"),
        ("localhost:1", "ca.pem", None, True, "contradict"),
        ("localhost:1", "server.key", None, False, "not a PEM certificate"),
        ("localhost:1", "none.pem", None, False, "No such file"),
        ("localhost:1", "ca.pem", "ca.pem", False, "no operator's token in it"),
        ("https://a.org", "ca.pem", None, False, "is not HOST:PORT"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    server: str, ca: str | None, token: str | None, insecure: bool, reason: str, home: ServerHome
) -> None:
    files = [None if name is None else home.path / name for name in (ca, token)]
    with pytest.raises(InputError, match=reason):
        read_connection(server, files[0], files[1], insecure=insecure)


def test_addresses_are_read_and_written() -> None:
    for text in ("a.org:1", "127.0.0.1:8000", "[::1]:65535"):
        assert join_address(*parse_address(text)) == text
    for text in ("a:0", "a:65536", "::1", "a:b", ":8", "u@a:1", "a:٣"):
        with pytest.raises(InputError):
            parse_address(text)
    assert [is_loopback(h) for h in ("localhost", "127.9.9.9", "::1")] == [True] * 3
    assert [is_loopback(h) for h in ("::", "localhost.evil.org", "10.0.0.1")] == [False] * 3
