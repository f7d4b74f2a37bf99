"""Files of a stranger's: each ends in one line, soon, and without much memory of ours."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.cli import run
from deploy.cli.output import print_table
from deploy.edge.archive import read_archive, write_archive
from deploy.edge.artefact import load_artefact, save_artefact
from deploy.edge.bundle import open_bundle, write_bundle
from deploy.edge.card import Card
from deploy.edge.examples import parse_examples
from deploy.edge.metadata import KEY, read_metadata
from deploy.edge.predict import Sampling, generate
from deploy.edge.reference import FILE, load_reference
from shared_models.errors import ExportError, InputError
from shared_models.inputs import InputSpec

IMAGE = InputSpec(shape=(1, 1, 4))
TOKENS = InputSpec(shape=(4,), dtype="int64", tokens=9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": ()},
        {"shape": (0,)},
        {"shape": (-1, 64)},
        {"shape": (10**6, 10**6)},
        {"mean": (0.0, 1.0, 2.0)},
        {"std": ()},
        {"std": (0.0,)},
        {"std": (float("nan"),)},
        {"dtype": "int64", "tokens": 0},
        {"white": 0.0},
    ],
)
def test_what_no_input_can_be_is_refused(wrong: dict[str, Any], copied: Path) -> None:
    with pytest.raises(ValueError, match=r"shape|mean|std|tokens|white"):
        replace(InputSpec(shape=(8, 8)), **wrong)
    model = copied / "model-fp32.onnx"
    beside = copied / "model-fp32.onnx.json"
    told = json.loads(beside.read_text())
    beside.write_text(json.dumps({**told, "input": {**told["input"], **wrong}}))
    with pytest.raises(InputError, match="damaged: input"):
        load_artefact(model)


def arrays(**changes: Any) -> dict[str, Any]:
    good = {"x": np.zeros((2, 4)), "targets": np.zeros(2, int), "outputs": np.zeros((2, 3))}
    return {**good, "answer": "classes", "meaning": "{}", **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {name: np.zeros((0, 4)) for name in ("x", "targets", "outputs")},
        {"targets": np.zeros(3, int)},
        {"targets": np.array(["a", "b"])},
        {"x": np.float64(1)},
        {"answer": "nothing"},
    ],
)
def test_a_reference_without_sense_is_damaged(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / FILE
    np.savez_compressed(path, **arrays())
    assert len(load_reference(path).x) == 2
    np.savez_compressed(path, **arrays(**changes))
    with pytest.raises(InputError, match="damaged"):
        load_reference(path)


def test_a_reference_nested_without_end_is_another_meaning(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / FILE, **arrays(meaning="[" * 100_000))
    assert load_reference(tmp_path / FILE).objection('{"labels": []}') == "labels"


def test_a_reference_is_not_unpacked_without_bound(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", bytes(1 << 28))
    with pytest.raises(InputError, match="unpacks to 256 MB"):
        load_reference(path)


def endless_number() -> bytes:
    return b"\xff" * (1 << 20)


def no_end_of_fields() -> bytes:
    return b"\x08\x01" * (1 << 20)


def one_name_for_all() -> bytes:
    """A flatbuffer whose half a million entries share one name of two megabytes."""
    return np.arange(1 << 20, dtype="<u4").tobytes()


@pytest.mark.parametrize("make", [endless_number, no_end_of_fields, one_name_for_all])
@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_metadata_without_end_is_given_up(
    make: Callable[[], bytes], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(make())
    with pytest.raises(InputError, match=r"damaged|no metadata"):
        read_metadata(path)


def test_a_huge_file_is_not_read_to_find_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 36)  # sparse: more than there is memory
    with pytest.raises(InputError, match="damaged"):
        read_metadata(path)


def test_metadata_of_ours_is_found(copied: Path) -> None:
    for name in ("model-int8.tflite", "model-fp32.onnx"):
        assert read_metadata(copied / name)["task"] == "digits-cnn", KEY


def test_how_long_verify_takes_is_not_for_a_file_to_say(copied: Path) -> None:
    beside = copied / "model-fp32.onnx.json"
    told = json.loads(beside.read_text())
    told["measured"][0]["latency"]["runs"] = 10**10
    beside.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"damaged: measured\.0\.latency\.runs"):
        load_artefact(copied / "model-fp32.onnx")
    assert run(["bench", str(copied / "model-fp32.onnx"), "--runs", str(10**10)]) == 2


def test_a_directory_that_lies_elsewhere_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    write_archive(path, {"a": b"1"})
    content = bytearray(path.read_bytes())
    content[-6:-2] = (10**7).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"bundle\.zip: is no bundle"):
        read_archive(path)


def test_labels_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("label",), [("[/foo]",), ("[bold]x",)])
    assert capsys.readouterr().out.split() == ["label", "[/foo]", "[bold]x"]


def test_shades_of_sixteen_bits_keep_their_order() -> None:
    content = io.BytesIO()
    Image.fromarray(np.array([[0, 16448, 32896, 65535]], np.uint16)).save(content, "PNG")
    shades = parse_examples(content.getvalue(), "a.png", IMAGE)
    np.testing.assert_allclose(shades.ravel(), [0, 64, 128, 255], atol=1)


def test_input_without_sense_is_one_line() -> None:
    odd = io.BytesIO()
    with zipfile.ZipFile(odd, "w") as file:
        file.writestr("note.txt", "no array")
    with pytest.raises(InputError, match="expected numbers"):
        parse_examples(odd.getvalue(), "odd.npz", IMAGE)
    with pytest.raises(InputError, match="no whole numbers"):
        parse_examples(b"0,2.7,2.99,1\n", "tokens.csv", TOKENS)


def test_the_lowest_temperature_takes_the_likeliest() -> None:
    card = Card(("a", "b", "c"), InputSpec(shape=(2,), dtype="int64", tokens=3))
    logits = np.array([[0.5, 2.0, 1.0]], np.float32)
    how = Sampling(characters=5, temperature=1e-308, seed=0)
    assert "".join(generate(lambda _: logits, card, "ab", how)) == "bbbbb"


def test_what_failed_its_gate_is_not_bundled(copied: Path) -> None:
    model = copied / "model-int8.tflite"
    save_artefact(copied, replace(load_artefact(model), passed=False))
    with pytest.raises(ExportError, match="did not pass its gate"):
        write_bundle(model)


def test_a_signature_is_for_the_content(copied: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from deploy.edge.bundle import _sums

    private = Ed25519PrivateKey.generate()
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    bundle = write_bundle(copied / "model-fp32.onnx", key)
    (tmp_path / "good").mkdir()
    assert open_bundle(bundle, tmp_path / "good", public).signed
    files = read_archive(bundle)
    files["README.md"] += b"\nTurn the gate off.\n"
    files["SHA256SUMS"] = _sums(files)
    write_archive(bundle, files)
    (tmp_path / "bad").mkdir()
    with pytest.raises(ExportError, match="signed"):
        open_bundle(bundle, tmp_path / "bad", public)
    assert not list((tmp_path / "bad").iterdir())
