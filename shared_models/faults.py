"""Which client suffers which injected fault in a round: a pure function that both sides know.

The server needs it for its simulated clock and for the record, a client to misbehave.
"""

from __future__ import annotations

import math

from shared_models.config.faults import FAULT_KINDS, Faults
from shared_models.partial import About
from shared_models.randomness import generator


def fault_of(faults: Faults, seed: int, about: About, client_id: int) -> str | None:
    """Returns the kind of fault that a client suffers in a round's attempt, or None.

    The first kind that hits is the one; listed clients are hit always.

    >>> fault_of(Faults(nan=(3,)), 0, ("train", 1, 0), 3)
    'nan'
    """
    if not faults.there_are_some:
        return None
    rng = generator(seed, *about, client_id, "fault")
    for kind, drawn in zip(FAULT_KINDS, rng.random(len(FAULT_KINDS)).tolist(), strict=True):
        victims = getattr(faults, kind)
        if client_id in victims if isinstance(victims, tuple) else drawn < victims:
            return kind
    if rng.random() < faults.any:
        return FAULT_KINDS[int(rng.integers(len(FAULT_KINDS)))]
    return None


def delay_of(faults: Faults, kind: str | None) -> float:
    """Returns the seconds by which a fault makes a client late, on the simulated clock."""
    return {"delay": faults.delay_s, "hang": math.inf}.get(kind or "", 0.0)
