"""What a page is made of, as values: the template draws these and knows no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True)
class Figure:
    """A plot: `data` and `layout` are plotly's, colours are names of the style sheet's.

    `alt` says in words what is to be seen; `note` stands under it.
    """

    title: str
    alt: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    height: int = 320
    wide: bool = False
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; columns whose name ends in a space hold numbers.

    Rows in `marked` stand out. A `folded` table opens when it is asked for.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()
    note: str = ""
    folded: bool = False
    wide: bool = False
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Note:
    """A sentence: `missing` says what was not recorded, `warning` what went wrong."""

    text: str
    tone: Literal["plain", "missing", "warning"] = "plain"
    kind: Literal["note"] = "note"


@dataclass(frozen=True)
class Image:
    """A picture with words for those who do not see it; boxes `(left, top, width, height)`.

    `data` is a data URI. `solid` boxes are what is right, `dashed` ones what was said.
    """

    data: str
    alt: str
    width: int
    height: int
    solid: tuple[tuple[float, float, float, float], ...] = ()
    dashed: tuple[tuple[float, float, float, float], ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Curves:
    """Small curves: points of polylines in a box of 100 by 40; `made` are drawn over `given`."""

    given: tuple[str, ...]
    made: tuple[str, ...]
    alt: str


@dataclass(frozen=True)
class Exhibit:
    """One example: pictures, curves or text, and what is said under them."""

    text: str = ""
    images: tuple[Image, ...] = ()
    curves: Curves | None = None
    lines: tuple[str, ...] = ()
    wrong: bool = False


@dataclass(frozen=True)
class Gallery:
    """Examples side by side."""

    title: str
    exhibits: tuple[Exhibit, ...]
    note: str = ""
    dense: bool = False
    kind: Literal["gallery"] = "gallery"


@dataclass(frozen=True)
class Quote:
    """A text that a model wrote: what it was given, and how it went on."""

    given: str
    text: str
    kind: Literal["quote"] = "quote"


@dataclass(frozen=True)
class Code:
    """Text as a machine reads it."""

    title: str
    text: str
    kind: Literal["code"] = "code"


Block: TypeAlias = Figure | Table | Note | Gallery | Quote | Code


@dataclass(frozen=True)
class Section:
    """A question that a reader has, with what answers it."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Card:
    """A number that matters, what it is, and what to hold it against."""

    title: str
    value: str
    note: str = ""
    tone: Literal["plain", "good", "bad"] = "plain"


@dataclass(frozen=True)
class Chapter:
    """A run, or several side by side: a headline, cards, sections."""

    name: str
    title: str
    status: str
    tone: Literal["plain", "good", "bad"]
    headline: tuple[str, ...]
    cards: tuple[Card, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Page:
    """All of a report."""

    title: str
    chapters: tuple[Chapter, ...]
    made: str
