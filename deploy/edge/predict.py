"""Labels, masks, boxes or values for examples; text, character by character."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.edge.answers import classes_in
from deploy.edge.card import Card
from deploy.edge.examples import is_text, parse_examples, parse_text, read_bytes
from deploy.edge.runtimes import Floats, Predict
from shared_models.boxes import NUMBERS, decode
from shared_models.errors import ExportError, InputError
from shared_models.words import tokens_of, words_in

_NUMBERS = re.compile(rb"\s*\d[\d,.\s]*")  # tokens as CSV
_MOST_TOKENS = 1 << 16


@dataclass(frozen=True)
class Guess:
    """A label, and how likely the model holds it to be: from 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class Sampling:
    """How text is drawn: at `temperature` 0 the likeliest character, at 1 as the model says."""

    characters: int
    temperature: float
    seed: int


def classify(predict: Predict, card: Card, raw: NDArray[Any], top: int) -> list[list[Guess]]:
    """Returns the likeliest labels of each example, at most `top` of them, the best first."""
    if card.answer != "classes":
        raise InputError(f"this model tells no labels of an example: its answer is a {card.answer}")
    scores = _softmax(_logits(predict, card, card.input.prepare(raw)))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [Guess(card.labels[place], float(row[place])) for place in places]
        for row, places in zip(scores, best, strict=True)
    ]


@dataclass(frozen=True)
class Mask:
    """The class of each pixel `(h, w)`, and each label's share of the pixels."""

    pixels: list[list[int]]
    shares: dict[str, float]


@dataclass(frozen=True)
class Values:
    """What a model answers with: numbers, in the shape that it has.

    `error` is the mean squared difference to the input, where that has the same shape: what an
    autoencoder finds unusual has a large one.
    """

    values: Any
    low: float
    mean: float
    high: float
    error: float | None


def segment(predict: Predict, card: Card, raw: NDArray[Any]) -> list[Mask]:
    """Returns the mask of each example."""
    masks = classes_in(_outputs(predict, card.input.prepare(raw)))
    return [Mask(mask.tolist(), _shares(mask, card.labels)) for mask in masks]


def _shares(mask: NDArray[np.int64], labels: tuple[str, ...]) -> dict[str, float]:
    return {label: float((mask == place).mean()) for place, label in enumerate(labels)}


@dataclass(frozen=True)
class Box:
    """Where something is, in pixels of the model's input, and how sure the model is: 0 to 1."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


def locate(predict: Predict, card: Card, raw: NDArray[Any]) -> list[list[Box]]:
    """Returns the boxes in each example, the surest first; none overlap much."""
    outputs = _outputs(predict, card.input.prepare(raw))
    if outputs.shape[1:2] != (NUMBERS,) or outputs.ndim != 4 or len(card.labels) != 1:
        raise ExportError(f"the file answers with shape {outputs.shape}, which are no boxes")
    (label,) = card.labels
    return [
        [Box(label, float(s), *map(float, b)) for b, s in zip(*found, strict=True)]
        for found in decode(outputs)
    ]


def evaluate(predict: Predict, card: Card, raw: NDArray[Any]) -> list[Values]:
    """Returns the numbers that a model makes of each example."""
    x = card.input.prepare(raw)
    outputs = _outputs(predict, x)
    alike = outputs.shape == x.shape
    errors = np.square(outputs - x).reshape(len(x), -1).mean(axis=1).tolist() if alike else []
    return [
        Values(own.tolist(), float(own.min()), float(own.mean()), float(own.max()), error)
        for own, error in zip(outputs, errors or [None] * len(x), strict=True)
    ]


def read_input(source: str, card: Card, *, invert: bool = False) -> NDArray[Any]:
    """Returns raw examples: of a file, of standard input, or of `source` itself if it is a text.

    A model of words takes one text a line.
    """
    content = _read(source, card)
    if takes_text(card) and is_text(content):
        return encode(card, parse_text(content, source))
    if card.words and is_text(content) and not _NUMBERS.fullmatch(content):
        return encode_words(card, parse_text(content, source).splitlines())
    return parse_examples(content, source, card.input, invert=invert)


def read_prompt(source: str, card: Card) -> str:
    """Returns the text to go on with; `InputError` when the model does not predict characters."""
    if not takes_text(card):
        raise InputError("this model does not take text: it tells no characters")
    return parse_text(_read(source, card), source)


def _read(source: str, card: Card) -> bytes:
    """Returns a content, or the text that `source` is: a name without a space is that of a file."""
    if " " in source and (card.words or takes_text(card)) and not Path(source).is_file():
        return source.encode()
    return read_bytes(source)


def takes_text(card: Card) -> bool:
    """Whether a model predicts characters from characters."""
    characters = card.input.dtype == "int64" and card.answer == "classes"
    return characters and all(len(label) == 1 for label in card.labels)


def encode(card: Card, text: str) -> NDArray[np.int64]:
    """Returns the last window of a text as tokens `(1, window)`, spaces before a short one."""
    places = {character: place for place, character in enumerate(card.labels)}
    blank = places.get(" ", 0)
    window = card.input.shape[-1]
    tokens = [places.get(character, blank) for character in text[-window:]]
    return np.array([[blank] * (window - len(tokens)) + tokens], np.int64)


def encode_words(card: Card, texts: Sequence[str]) -> NDArray[np.int64]:
    """Returns tokens `(n, window)` of the texts that are not empty."""
    words, known = [words_in(text) for text in texts if text.strip()], card.words.split()
    if not words:
        raise InputError("--input: has no text")
    if len(known) + 2 > min(card.input.tokens, _MOST_TOKENS):
        raise ExportError("the file is damaged: it has more words than tokens")
    return tokens_of(words, known, card.input.shape[-1]).astype(np.int64)


def generate(predict: Predict, card: Card, prompt: str, how: Sampling) -> Iterator[str]:
    """Yields the characters that follow a prompt, a pure function of `how.seed`."""
    window, rng = encode(card, prompt), np.random.default_rng(how.seed)
    for _ in range(how.characters):
        (logits,) = _logits(predict, card, window)
        if how.temperature:
            with np.errstate(over="ignore"):  # of what is least likely, at the lowest temperatures
                (chances,) = _softmax(
                    (logits - logits.max()).astype(np.float64)[None] / how.temperature
                )
            place = int(rng.choice(len(chances), p=chances))
        else:
            place = int(logits.argmax())
        yield card.labels[place]
        window = np.append(window[:, 1:], [[place]], axis=1)


def _outputs(predict: Predict, x: NDArray[Any]) -> Floats:
    outputs = np.concatenate([predict(x[place : place + 100]) for place in range(0, len(x), 100)])
    if len(outputs) != len(x) or outputs.ndim < 2 or not np.isfinite(outputs).all():
        raise ExportError(f"the file answers with shape {outputs.shape}, NaN or infinite values")
    return outputs


def _logits(predict: Predict, card: Card, x: NDArray[Any]) -> Floats:
    logits = _outputs(predict, x)
    if logits.shape != (len(x), len(card.labels)):
        raise ExportError(
            f"the file answers with shape {logits.shape}; it has {len(card.labels)} labels"
        )
    return logits


def _softmax(logits: Floats) -> NDArray[np.float64]:
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return scores
