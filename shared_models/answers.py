"""What a model answers with, as plain values: a device needs no torch to read them."""

from __future__ import annotations

from typing import Literal, TypeAlias

Answer: TypeAlias = Literal["classes", "mask", "values", "boxes"]
"""`classes`: a score per class `(n, classes)`. `values`: numbers of any shape `(n, ...)`. `mask`: a
score per class and pixel `(n, classes, h, w)`; a single class is there where it is above 0.
`boxes`: numbers for each cell of a grid `(n, 5, rows, columns)`, which `shared_models.boxes` reads.
"""
