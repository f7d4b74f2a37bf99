"""The stage that makes the model smaller between stages that learn."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from shared_models.config.tables import Name, Table

Prefixes: TypeAlias = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)
]


class PruneStage(Table):
    """Channels and units with the smallest weights go; later stages train a smaller model."""

    name: Name = "prune"
    kind: Literal["prune"]
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """This share of each layer's channels or units stays, rounded up."""
    prefixes: Prefixes = ()
    """Only layers whose arrays begin so are cut, e.g. `["encoder.dense"]`; absent: all are.
    The last layer never is: its outputs are the labels."""
