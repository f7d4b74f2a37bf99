"""What the final model says of some examples: `samples.json`, for people to look at."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

SAMPLES = "samples.json"
MOST_SIDE = 512  # pixels

Box: TypeAlias = tuple[float, float, float, float]
_Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


@dataclass(frozen=True)
class Picture:
    """`pixels` are bytes in base64, row by row, one (grey) or three (RGB) a pixel."""

    height: _Side
    width: _Side
    channels: Annotated[int, Field(ge=1, le=3)]
    pixels: str


def picture(values: NDArray[np.uint8]) -> Picture:
    """Returns an image `(height, width)` or `(height, width, 3)` as plain values.

    >>> picture(np.zeros((1, 3), np.uint8))
    Picture(height=1, width=3, channels=1, pixels='AAAA')
    """
    height, width, *rest = values.shape
    text = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return Picture(height, width, rest[0] if rest else 1, text)


@dataclass(frozen=True)
class Shown:
    """An example, what is right for it, and what the model made of it: what there is of these.

    `series` and `series_made` are curves `(channels, steps)`; `sure` is how likely the model holds
    its answer to be, from 0 to 1. Boxes are left, top, right, bottom in pixels.
    """

    picture: Picture | None = None
    series: tuple[tuple[float, ...], ...] = ()
    text: str = ""
    truth: str = ""
    said: str = ""
    sure: float | None = None
    truth_picture: Picture | None = None
    made: Picture | None = None
    series_made: tuple[tuple[float, ...], ...] = ()
    truth_boxes: tuple[Box, ...] = ()
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Written:
    """A text that the model went on with."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Samples:
    """`examples` of the test data, evenly spread, went through the final model.

    * `confusion`: a row per true label, a column per answer; empty where answers are no classes.
    * `shown`: examples as they come; `wrong`: mistakes, those of which it was surest first.
    * `written`: what a model of characters wrote at the `temperature`.
    """

    examples: int
    answer: str
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    shown: tuple[Shown, ...] = ()
    wrong: tuple[Shown, ...] = ()
    written: tuple[Written, ...] = ()
    temperature: float | None = None

    def __post_init__(self) -> None:
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("the confusion matrix is not square")
