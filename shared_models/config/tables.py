"""What every table of a config is made of."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Part: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A fraction that leaves something."""
Positive: TypeAlias = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Decay: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
Count: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


class Table(BaseModel):
    """A frozen table whose unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
