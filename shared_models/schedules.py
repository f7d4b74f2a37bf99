"""Schedules: the factor on the learning rate in round `r` of a stage; rounds count from 1.

Pure functions of the round, so that a resumed run needs no state for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from shared_models.config import TrainStage

Schedule: TypeAlias = Callable[[int], float]


def constant() -> Schedule:
    """Returns the schedule that leaves the learning rate as it is.

    >>> constant()(7)
    1.0
    """
    return lambda _: 1.0


def exponential(decay: float) -> Schedule:
    """Returns `decay ** (r - 1)`.

    >>> [exponential(0.5)(r) for r in (1, 2, 3)]
    [1.0, 0.5, 0.25]
    """
    return lambda r: decay ** (r - 1)


def step(every: int, decay: float) -> Schedule:
    """Returns `decay ** floor((r - 1) / every)`: a drop after every so many rounds.

    >>> [step(2, 0.5)(r) for r in (1, 2, 3, 4, 5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return lambda r: decay ** ((r - 1) // every)


def cosine(rounds: int, floor: float = 0.0) -> Schedule:
    """Returns `floor + (1 - floor) * (1 + cos(pi * (r - 1) / rounds)) / 2`.

    Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, equation
    5, without restarts. `floor` is reached when `rounds` rounds are over, not in the last of them:
    with floor 0 that one would not train. It stays there afterwards.

    >>> [round(cosine(4, floor=0.2)(r), 3) for r in (1, 3, 5, 6)]
    [1.0, 0.6, 0.2, 0.2]
    """

    def factor(r: int) -> float:
        part = min(1.0, (r - 1) / rounds)
        return floor + (1 - floor) * (1 + math.cos(math.pi * part)) / 2

    return factor


def warmup(rounds_up: int, inner: Schedule) -> Schedule:
    """Returns `min(1, r / rounds_up) * inner(r)`: a linear rise, then `inner` as if without it.

    Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.2.

    >>> [warmup(4, step(5, 0.5))(r) for r in (1, 2, 4, 5, 6)]
    [0.25, 0.5, 1.0, 1.0, 0.5]
    """
    return lambda r: min(1.0, r / rounds_up) * inner(r)


def schedule_of(stage: TrainStage, side: Literal["local", "server"]) -> Schedule:
    """Returns the schedule that a stage asks for, for its clients or its server."""
    told = {key.removeprefix(f"{side}_"): value for key, value in stage}
    made: dict[str, Callable[[], Schedule]] = {
        "constant": constant,
        "exponential": lambda: exponential(told["decay"]),
        "step": lambda: step(told["decay_every"], told["decay"]),
        "cosine": lambda: cosine(stage.rounds, told["floor"]),
    }
    inner = made[told["schedule"]]()
    rounds_up = told["warmup_rounds"]
    return warmup(rounds_up, inner) if rounds_up else inner
