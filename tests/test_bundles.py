"""Bundles: everything a device needs, the same bytes each time, and nothing hostile gets out."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from deploy.cli import run
from deploy.edge.archive import read_archive, write_archive
from deploy.edge.artefact import Gate
from deploy.edge.bundle import write_bundle
from deploy.edge.reference import load_reference
from deploy.edge.runtimes import open_model, python_of
from tests.conftest import ROOT
from tests.verbs import refused, told

MODEL = "model-int8.tflite"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with two pairs of keys, and one that cannot sign."""
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("ours", "theirs"):
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pem").write_bytes(private)
        (folder / f"{name}-public.pem").write_bytes(public)
    other = X25519PrivateKey.generate()
    (folder / "x25519.pem").write_bytes(
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return folder


@pytest.mark.parametrize("name", [MODEL, "model-int8.onnx"])
def test_a_bundle_is_the_same_twice_and_verified(
    copied: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(copied / name)
    content = bundle.read_bytes()
    assert write_bundle(copied / name).read_bytes() == content
    found = told(capsys, "verify", str(bundle))
    assert found["signature"] == "not signed"
    assert found["measured"][0]["parity"]["examples"] == 100
    assert "example.c" in read_archive(bundle) or name.endswith("onnx")


def test_export_makes_signed_bundles(
    exported: Path, tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = Path(shutil.copytree(exported.parent, tmp_path / "run"))
    words = ["export", str(again), "--format", "tflite", "--quantize", "int8"]
    assert "--bundle" in refused(capsys, *words, "--sign-key", str(keys / "ours.pem"))
    for name in ("x25519.pem", "ours-public.pem", "none.pem"):
        assert name in refused(capsys, *words, "--bundle", "--sign-key", str(keys / name))
    assert run([*words, "--bundle", "--sign-key", str(keys / "ours.pem")]) == 0
    bundle = str(again / "export" / "model-int8-tflite.zip")
    assert run(["verify", bundle]) == 0
    assert "by whom was not checked" in capsys.readouterr().out
    assert run(["verify", bundle, "--public-key", str(keys / "ours-public.pem")]) == 0
    shown = refused(capsys, "verify", bundle, "--public-key", str(keys / "theirs-public.pem"))
    assert "signed with another key" in shown
    shown = refused(capsys, "verify", bundle, "--public-key", str(keys / "ours.pem"))
    assert "is no public Ed25519 key" in shown


def test_what_must_be_signed_is_not_taken_without(
    copied: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = ("--public-key", str(keys / "ours-public.pem"))
    bundle = write_bundle(copied / MODEL)
    assert "is not signed" in refused(capsys, "verify", str(bundle), *public)
    assert "for bundles" in refused(capsys, "verify", str(copied / MODEL), *public)


def unpacked(copied: Path, tmp_path: Path, name: str = MODEL) -> Path:
    """Returns a folder with a bundle's files."""
    folder = tmp_path / "device"
    folder.mkdir()
    with zipfile.ZipFile(write_bundle(copied / name)) as archive:
        archive.extractall(folder)
    return folder


def said_by(model: Path) -> list[str]:
    """Returns the labels that a file gives to the examples beside it."""
    x = load_reference(model.parent / "reference.npz").x.reshape(-1, 1, 8, 8)
    with open_model(model) as opened:
        return [str(k) for k in opened.predict(x.astype(np.float32) / 16).argmax(axis=1)]


@pytest.mark.parametrize("name", [MODEL, "model-fp32.tflite", "model-int8.onnx"])
def test_the_python_example_runs_as_it_is(copied: Path, tmp_path: Path, name: str) -> None:
    folder = unpacked(copied, tmp_path, name)
    pythons = [sys.executable]
    if name.endswith("tflite") and (old := python_of("tflite-runtime")):
        pythons.append(str(old))
    for python in pythons:
        words = [python, str(folder / "example.py")]
        shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        assert shown.split() == said_by(folder / name)


@pytest.mark.skipif(not shutil.which("cc"), reason="NOT COMPILED: no C compiler")
def test_the_c_example_compiles_without_a_warning(copied: Path, tmp_path: Path) -> None:
    folder = unpacked(copied, tmp_path)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "-o", "example.o"]
    headers = f"-I{ROOT / 'tests' / 'tflite_c'}"
    subprocess.run(["cc", *strict, headers, "example.c"], cwd=folder, check=True)


def test_the_sums_are_those_of_sha256sum(copied: Path, tmp_path: Path) -> None:
    folder = unpacked(copied, tmp_path)
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)


def test_the_gate_of_a_bundle_is_no_looser_than_it_must_be(copied: Path) -> None:
    files = read_archive(write_bundle(copied / MODEL))
    described = json.loads(files[f"{MODEL}.json"])
    gate, worst = Gate(**described["gate"]), described["measured"][0]["parity"]
    assert gate.max_score_drop <= worst["score_torch"] - worst["score"] + 0.011
    assert gate.min_agreement >= min(0.95, worst["agreement"] - 0.011)


def altered(bundle: Path, name: str, content: bytes) -> None:
    files = read_archive(bundle)
    write_archive(bundle, {**files, name: content})


def zipped(compression: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    """Returns a function that writes a megabyte of zeros as a zip of its own."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("model.tflite", bytes(1_000_000))

    return write


def with_path(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escaped.tflite", b"x")


def absolute(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("/tmp/escaped.tflite", b"x")  # noqa: S108  # it is refused


def crowded(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1000):
            archive.writestr(f"f{number}", b"")


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.tflite", b"x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("model.tflite", b"y")


def boastful(path: Path) -> None:
    """A stored file that claims four gigabytes, in the list and where it begins."""
    zipped()(path)
    content = path.read_bytes().replace(struct.pack("<I", 1_000_000), b"\xf0\xff\xff\xff")
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    zipped()(path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "make",
    [
        zipped(zipfile.ZIP_DEFLATED),
        zipped(),
        with_path,
        absolute,
        crowded,
        twice,
        boastful,
        encrypted,
        noise,
        emptied,
    ],
)
def test_a_hostile_bundle_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    make(folder / "b.zip")
    assert "b.zip: " in refused(capsys, "verify", str(folder / "b.zip"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.zip"]


@pytest.mark.parametrize("name", [MODEL, "labels.txt", "reference.npz", f"{MODEL}.json"])
def test_an_altered_file_in_a_bundle_is_caught(
    copied: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(copied / MODEL)
    altered(bundle, name, read_archive(bundle)[name][:-1] + b"!")
    assert "its files are not those of SHA256SUMS" in refused(capsys, "verify", str(bundle))


@pytest.mark.parametrize("cut", [10, 1000, 20_000])
def test_a_truncated_bundle_is_one_line(
    copied: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(copied / MODEL)
    bundle.write_bytes(bundle.read_bytes()[:-cut])
    assert "is no bundle, or damaged" in refused(capsys, "verify", str(bundle))


def test_an_archive_is_read_as_it_was_written(tmp_path: Path) -> None:
    files = {"a.txt": b"one", "b.bin": bytes(1000), "empty": b""}
    write_archive(tmp_path / "a.zip", files)
    assert read_archive(tmp_path / "a.zip") == files
    with zipfile.ZipFile(io.BytesIO((tmp_path / "a.zip").read_bytes())) as archive:
        assert archive.testzip() is None
