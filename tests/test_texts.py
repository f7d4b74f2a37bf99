"""Texts: how they become tokens, who owns them, and that models of them learn."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clients.partitions import partition
from deploy.cli import run
from deploy.edge.bundle import write_bundle
from deploy.edge.card import Card
from deploy.edge.predict import read_input
from shared_models.config import parse_data
from shared_models.datasets.dataset import Dataset
from shared_models.datasets.load import load_dataset
from shared_models.datasets.sentiment import DOMAINS, VOCABULARY, WINDOW, vocabulary_of
from shared_models.errors import ConfigError, DataError, ExportError, InputError
from shared_models.inputs import InputSpec
from shared_models.models.text import text_lstm, text_rnn
from shared_models.words import tokens_of
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def sentiment() -> Dataset:
    try:
        return load_dataset("sentiment")
    except DataError as error:
        pytest.skip(f"NO SENTIMENT DATA: {error}")


def test_four_domains_are_all_there(sentiment: Dataset) -> None:
    assert sentiment.test is not None
    assert (len(sentiment.train), len(sentiment.test)) == (18_713, 4_607)
    for split in (sentiment.train, sentiment.test):
        assert split.client_id is not None
        assert set(split.client_id.tolist()) == set(range(len(DOMAINS)))
        assert set(split.y.tolist()) == {0, 1}
        tokens = np.asarray(split.x)
        assert tokens.shape == (len(split), WINDOW)
        assert tokens.max() < VOCABULARY


def test_padding_comes_first_and_long_texts_lose_their_end() -> None:
    known = vocabulary_of([("good", "bad", "good")])
    assert tokens_of([("bad", "good", "odd")], known, 4).tolist() == [[0, 3, 2, 1]]
    assert tokens_of([("bad", "good", "odd")], known, 2).tolist() == [[3, 2]]
    assert tokens_of([()], known, 2).tolist() == [[0, 0]]


def test_the_vocabulary_has_no_word_of_the_test_texts_alone(sentiment: Dataset) -> None:
    assert sentiment.test is not None
    train, test = np.asarray(sentiment.train.x), np.asarray(sentiment.test.x)
    # Words beyond the window are in the vocabulary, too: nearly all of it is in the windows.
    assert len(np.unique(train)) > 0.99 * VOCABULARY
    assert len(np.setdiff1d(test, train)) < 0.01 * VOCABULARY


def test_domains_are_dealt_out_over_more_clients(sentiment: Dataset) -> None:
    data = parse_data({"partition": "natural", "parts_per_client": 25})
    whole, domains = partition(sentiment.train, data, 0), sentiment.train.client_id
    assert domains is not None
    assert whole.client_ids.tolist() == list(range(100))
    for client_id in (0, 24, 25, 99):
        assert set(domains[whole.indices(client_id)].tolist()) == {client_id // 25}
    owned = np.concatenate([whole.indices(k) for k in whole.client_ids.tolist()])
    assert sorted(owned.tolist()) == list(range(len(sentiment.train)))


def test_what_cannot_be_dealt_out_is_named(sentiment: Dataset) -> None:
    data = parse_data({"partition": "natural", "parts_per_client": 5_000})
    with pytest.raises(InputError, match="parts_per_client: 5000 parts cannot be cut"):
        partition(sentiment.train, data, 0)
    with pytest.raises(ConfigError, match="parts_per_client: contradicts 'iid'"):
        parse_data({"partition": "iid", "clients": 3, "parts_per_client": 2})


def test_ten_classes_make_the_head_larger() -> None:
    counts = [sum(p.numel() for p in make(10).parameters()) for make in (text_rnn, text_lstm)]
    assert counts == [2_610_698, 2_758_922]


WORDS = Card(("bad", "good"), InputSpec((4,), "int64", tokens=5), words="fine film !")


def test_a_model_of_words_is_told_a_text_its_file_or_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "A fine FILM!\n\nfilm\n"
    (tmp_path / "two.txt").write_text(lines)
    (tmp_path / "tokens.csv").write_text("0,0,2,1\n")
    both = [[1, 2, 3, 4], [0, 0, 0, 3]]
    assert read_input("A fine film!", WORDS).tolist() == both[:1]
    assert read_input(str(tmp_path / "two.txt"), WORDS).tolist() == both
    assert read_input(str(tmp_path / "tokens.csv"), WORDS).tolist() == [[0, 0, 2, 1]]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert read_input("-", WORDS).tolist() == both


def test_a_text_that_is_none_and_words_that_are_too_many_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.txt: there is no such file"):
        read_input(str(tmp_path / "no.txt"), WORDS)
    with pytest.raises(InputError, match="has no text"):
        read_input("  ", WORDS)
    with pytest.raises(ExportError, match="more words than tokens"):
        read_input("a film", Card(WORDS.labels, WORDS.input, words="a b c d"))


@pytest.mark.slow
def test_a_file_alone_reads_texts(
    sentiment: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["stages.train.rounds=1", "plan.trainer=reused", "data.max_examples_per_client=50"]
    few += ['stages.export.quantize=["none"]', "stages.export.max_score_drop=1.0"]
    options = [word for setting in few for word in ("-s", setting)]
    config = str(ROOT / "examples" / "text-rnn.toml")
    assert run(["simulate", config, "--out", str(tmp_path / "run"), *options]) == 0
    known = sentiment.words.split()
    (tmp_path / "alone").mkdir()
    for name in ("model-fp32.onnx", "model-fp32.tflite"):
        file = str(tmp_path / "alone" / name)
        shutil.copy(tmp_path / "run" / "export" / name, file)
        tokens = tokens_of([("a", "dull", "film", ".")], known, WINDOW)
        np.save(tmp_path / "tokens.npy", tokens)
        told = []
        for source in ("A dull film.", str(tmp_path / "tokens.npy")):
            capsys.readouterr()
            assert run(["predict", file, "--input", source, "--json"]) == 0
            told.append(json.loads(capsys.readouterr().out))
        assert told[0] == told[1]
        assert said_on_a_device(tmp_path, name, "A dull film.\n") == [told[0][0][0]["label"]]


def said_on_a_device(folder: Path, name: str, text: str) -> list[str]:
    """Returns what the example of a file's bundle prints of a text."""
    device = folder / f"device-{name}"
    shutil.unpack_archive(write_bundle(folder / "run" / "export" / name), device)
    (device / "films.txt").write_text(text)
    command = [sys.executable, str(device / "example.py"), str(device / "films.txt")]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return shown.splitlines()
