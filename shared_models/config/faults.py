"""Faults that are injected on purpose, to see that a run survives them."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from shared_models.config.tables import Fraction, Positive, Table

Clients: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
Victims: TypeAlias = Fraction | Clients


FAULT_KINDS = (
    "crash",
    "hang",
    "delay",
    "nan",
    "inf",
    "wrong_shape",
    "wrong_dtype",
    "missing_key",
    "huge_norm",
    "sign_flip",
    "label_flip",
    "duplicate_reply",
    "stale_reply",
)


class Faults(Table):
    """Who suffers what: a share of the clients, drawn anew in every round, or a list of ids."""

    crash: Victims = 0.0
    hang: Victims = 0.0
    delay: Victims = 0.0
    nan: Victims = 0.0
    inf: Victims = 0.0
    wrong_shape: Victims = 0.0
    wrong_dtype: Victims = 0.0
    missing_key: Victims = 0.0
    huge_norm: Victims = 0.0
    sign_flip: Victims = 0.0
    label_flip: Victims = 0.0
    duplicate_reply: Victims = 0.0
    stale_reply: Victims = 0.0
    any: Fraction = 0.0
    """A share that suffers one of them all, drawn uniformly."""
    delay_s: Positive = 60.0
    """How late those with `delay` are, on the simulated clock."""
    sign_flip_scale: Positive = 1.0
    """Those with `sign_flip` send `-sign_flip_scale * delta`."""

    @field_validator(*FAULT_KINDS, mode="wrap")
    @classmethod
    def _share_or_ids(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise ValueError(
                f": must be a share from 0 to 1, or a list of client ids, got {value!r}"
            ) from None

    @property
    def there_are_some(self) -> bool:
        """Whether anybody suffers anything."""
        return any(getattr(self, name) for name in ("any", *FAULT_KINDS))
