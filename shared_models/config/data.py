"""Which examples there are, who owns them, what is measured."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from shared_models.config.tables import Count, Fraction, Positive, Table


class Data(Table):
    """Which examples there are and who owns them."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """A dataset of `wildflower data list` or a path to an `.npz`; absent: the task's own."""
    root: str | None = None
    """A folder with files that you already have, instead of the download."""
    partition: Literal["iid", "shards", "dirichlet", "natural", "draws"] = "iid"
    clients: Count | None = None
    """How many clients; absent for `natural`, where the data says so."""
    parts_per_client: Count | None = None
    """For `natural`: each of the data's clients is dealt out over so many, at random."""
    shards_per_client: Count = 2
    """For `shards`: how many label-sorted shards each client gets."""
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] = 0.5
    """For `dirichlet`: small is skewed, large is even."""
    examples_per_client: Count | None = None
    """For `draws`: how many examples each client draws for itself; clients overlap."""
    max_examples_per_client: Count | None = None
    """Each client keeps at most this many of its examples."""
    labelled_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The share of each client's labels that is shown. Stages that need labels see these examples
    alone, and only clients that have some; `pretrain` sees all examples of all clients."""

    @model_validator(mode="after")
    def _clients_fit_partition(self) -> Self:
        natural = self.partition == "natural"
        if natural and self.clients is not None:
            raise ValueError("clients: contradicts partition 'natural', where the data says so")
        if not natural and self.parts_per_client is not None:
            raise ValueError(f"parts_per_client: contradicts {self.partition!r}; it is for natural")
        if (self.partition == "draws") != (self.examples_per_client is not None):
            needs = "is missing; partition 'draws' needs a number"
            told = needs if self.partition == "draws" else f"contradicts {self.partition!r}"
            raise ValueError(f"examples_per_client: {told}")
        if self.partition == "draws" and self.max_examples_per_client is not None:
            raise ValueError("max_examples_per_client: contradicts examples_per_client")
        if not natural and self.clients is None:
            raise ValueError(f"clients: is missing; partition {self.partition!r} needs a number")
        return self


class Evaluate(Table):
    """What the server measures between rounds."""

    data: str = "test"
    """`test` (the dataset's test split), a path to an `.npz`, or `none`."""
    every: Count = 1
    """Evaluate every n rounds, and after the last."""
    clients_fraction: Fraction = 0.0
    """Share of all clients that measure the model on their own examples, each time."""
    batch_size: Count = 100
    """Small batches stay in a CPU's cache; a GPU wants thousands."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the server evaluates; `auto`: on a GPU where there is one."""
    adversarial_epsilon: Positive | None = None
    """The server measures `robust_accuracy` too, by PGD: how far each number of an input may be
    moved; images go from 0 to 1."""
    adversarial_steps: Count | None = None
    """For `adversarial_epsilon`: steps of the attack, 10 if absent."""
    adversarial_examples: Count | None = None
    """For `adversarial_epsilon`: so many test examples are attacked, 1000 if absent."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Lower precision inside the model; the loss and the metrics are float32 all the same."""

    @model_validator(mode="after")
    def _attacks_are_whole(self) -> Self:
        for key in ("adversarial_steps", "adversarial_examples"):
            if getattr(self, key) is not None and self.adversarial_epsilon is None:
                raise ValueError(f"{key}: is for adversarial_epsilon, which is missing")
        if self.adversarial_epsilon is not None and self.data == "none":
            raise ValueError("adversarial_epsilon: contradicts data 'none': the server measures it")
        return self

    @field_validator("data")
    @classmethod
    def _data_is_known(cls, data: str) -> str:
        if data in {"test", "none"} or data.endswith(".npz"):
            return data
        raise ValueError(f": must be 'test', 'none' or a path ending in .npz, got {data!r}")
