"""Short texts with a mean score of many readers: is a text negative or positive?

Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social media
text", ICWSM 2014. A client is a domain: product reviews, film reviews, editorials, tweets. Texts
whose score is exactly 0 have no sign and are left out. Sentences of a fifth of the documents are
the test set: none of them is trained on.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from shared_models.datasets.archive import Archive
from shared_models.datasets.dataset import Dataset, Split
from shared_models.errors import DataError
from shared_models.words import tokens_of, words_in

DOMAINS = (
    "amazonReviewSnippets",
    "movieReviewSnippets",
    "nytEditorialSnippets",
    "tweets",
)
MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
VOCABULARY = 10_000  # tokens, with the two that are no words
WINDOW = 40  # 95 of 100 texts are no longer


class Text(NamedTuple):
    """A text's words, the sign of its score, the place of its domain, and if it is for testing."""

    words: tuple[str, ...]
    positive: bool
    domain: int
    held_out: bool


def vocabulary_of(texts: Iterable[Sequence[str]], size: int = VOCABULARY) -> tuple[str, ...]:
    """Returns the most frequent words, at most `size - 2`; equally frequent ones by the alphabet.

    >>> vocabulary_of([("b", "a"), ("c", "b")], size=4)
    ('b', 'a')
    """
    counts = Counter(word for words in texts for word in words)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(word for word, _ in ranked[: size - 2])


def read_sentiment(archive: Archive) -> Dataset:
    """Reads tokens `(n, 40)`; the vocabulary is made from the training texts alone."""
    # The archive gunzips what it reads: what is left is a tar.
    with tarfile.open(fileobj=io.BytesIO(archive.read(MEMBER))) as inner:
        texts = [text for place, _ in enumerate(DOMAINS) for text in _texts(inner, place)]
    train = [text for text in texts if not text.held_out]
    known = vocabulary_of(text.words for text in train)
    test = [text for text in texts if text.held_out]
    return Dataset("sentiment", _split(train, known), _split(test, known), DOMAINS, " ".join(known))


def _texts(inner: tarfile.TarFile, domain: int) -> Iterable[Text]:
    name = f"hutto_ICWSM_2014/{DOMAINS[domain]}_GroundTruth.txt"
    file = inner.extractfile(name)
    if file is None:
        raise DataError(f"{MEMBER}: {name} is not a file")
    for line in file.read().decode("utf-8", "replace").splitlines():
        if line.count("\t") < 2:
            continue
        number, score, text = line.split("\t", 2)
        if float(score):
            # `12_3` is the third sentence of document 12.
            held_out = int(number.partition("_")[0]) % 5 == 4
            yield Text(words_in(text), float(score) > 0.0, domain, held_out)


def _split(texts: Sequence[Text], vocabulary: Sequence[str]) -> Split:
    return Split(
        tokens_of([text.words for text in texts], vocabulary, WINDOW),
        np.array([text.positive for text in texts], np.int64),
        np.array([text.domain for text in texts], np.int64),
    )
