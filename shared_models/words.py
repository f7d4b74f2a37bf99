"""How a text becomes tokens, as plain values: a device does it as the data's reader did."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PADDING, UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)*|[^\sa-z0-9]")


def words_in(text: str) -> tuple[str, ...]:
    """Returns lower-case words, and every other character by itself.

    >>> words_in("Don&#39;t   worry :)")
    ("don't", 'worry', ':', ')')
    """
    return tuple(_WORD.findall(html.unescape(text).lower()))


def tokens_of(
    texts: Sequence[Sequence[str]], vocabulary: Sequence[str], window: int
) -> NDArray[np.uint16]:
    """Returns tokens `(n, window)`: 0 before a short text, 1 for words that are not known.

    Of a long text the first words are kept. Padding comes first, so that a model's last state is
    that after the last word.

    >>> tokens_of([("a", "b", "x")], ("a", "b"), window=4).tolist()
    [[0, 2, 3, 1]]
    """
    places = {word: place for place, word in enumerate(vocabulary, UNKNOWN + 1)}
    tokens = np.full((len(texts), window), PADDING, np.uint16)
    for row, words in zip(tokens, texts, strict=True):
        if kept := [places.get(word, UNKNOWN) for word in words[:window]]:
            row[-len(kept) :] = kept
    return tokens
