"""What a file's outputs are called and what it takes: all that a prediction needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from deploy.edge.artefact import Artefact, describe_path, load_artefact
from deploy.edge.metadata import read_metadata
from shared_models.answers import Answer
from shared_models.errors import InputError
from shared_models.inputs import InputSpec


@dataclass(frozen=True)
class Card:
    """The meaning of a file's outputs and of its input.

    `words`: what tokens 2, 3, ... are, with spaces between; empty for what takes no words.
    """

    labels: tuple[str, ...]
    input: InputSpec
    answer: Answer = "classes"
    words: str = ""


def card_of(described: Artefact) -> Card:
    """Returns what of a description a prediction needs."""
    return Card(described.labels, described.input, described.answer, described.words)


def read_card(path: Path) -> Card:
    """Returns the card from the description beside a file, else from inside the file.

    Raises `InputError` when neither is there.
    """
    if describe_path(path).is_file():
        return card_of(load_artefact(path))
    return _card_inside(path)


def _card_inside(path: Path) -> Card:
    try:
        return TypeAdapter(Card).validate_python(read_metadata(path))
    except ValidationError:
        raise InputError(f"{path}: damaged: its metadata lacks labels or input") from None


def card_inside(path: Path) -> Card | None:
    """Returns the card inside a file, None if there is none."""
    try:
        return _card_inside(path)
    except InputError:
        return None


def find_card(path: Path) -> Card | None:
    """Returns the card of a file, None for a file that is not ours."""
    try:
        return read_card(path)
    except InputError:
        return None
