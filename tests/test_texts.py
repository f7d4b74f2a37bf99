"""Texts: how they become tokens, who owns them, and that models of them learn."""

from __future__ import annotations

import numpy as np
import pytest

from clients.partitions import partition
from shared_models.config import parse_data
from shared_models.datasets.dataset import Dataset
from shared_models.datasets.load import load_dataset
from shared_models.datasets.sentiment import DOMAINS, VOCABULARY, WINDOW, tokens_of, vocabulary_of
from shared_models.errors import ConfigError, DataError, InputError
from shared_models.models.text import text_lstm, text_rnn


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
