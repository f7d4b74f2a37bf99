"""The stage in which clients say in which ranges the values inside the model lie."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared_models.config.tables import Count, Fraction, Name, Positive, Table


class CalibrateStage(Table):
    """Activation ranges for full int8, from the clients' own data; no example leaves them."""

    name: Name = "calibrate"
    kind: Literal["calibrate"]
    clients: Count = 100
    """How many clients are asked, drawn like a cohort; all, where there are fewer."""
    examples_per_client: Count = 50
    """At most this many of a client's own examples are run through the model."""
    method: Literal["minmax", "percentile"] = "minmax"
    """`percentile` cuts off the thinnest ends of what all clients saw together."""
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] | None = None
    """For `percentile`, 99.99 if absent: at each end so much is left out, at most."""
    max_range: Annotated[float, Field(gt=0.0, le=65536.0)] = 65536.0
    """A client whose values are larger than this is refused."""
    min_fraction: Fraction = 0.5
    """The quorum: with fewer of those that were asked the stage fails."""
    noise_epsilon: Positive | None = None
    """Differential privacy of what is published, for a client as a whole; absent: no noise."""
    noise_delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    noise_floor: Positive = 0.25
    noise_ceiling: Positive = 64.0
    """With noise, the ends of a client's ranges are clipped to these magnitudes."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.percentile is not None and self.method != "percentile":
            raise ValueError("percentile: contradicts method 'minmax'; set method = 'percentile'")
        if self.noise_epsilon is not None and self.method != "minmax":
            raise ValueError(
                "noise_epsilon: contradicts method 'percentile'; only minmax has noise"
            )
        if self.noise_floor >= self.noise_ceiling:
            raise ValueError("noise_floor: must be less than noise_ceiling")
        return self

    @property
    def settled_percentile(self) -> float | None:
        """What is left within the range, per cent, at each end; None: all of it."""
        return None if self.method == "minmax" else self.percentile or 99.99
