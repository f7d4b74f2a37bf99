"""Counter-based randomness: what is drawn depends on its key alone, never on who draws or when.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox).
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """Returns the generator of one purpose, keyed by e.g. `(seed, stage, round, client, purpose)`.

    >>> bool((generator(0, "train", 1).random(3) == generator(0, "train", 1).random(3)).all())
    True
    """
    # repr keeps 1 and "1" apart; blake2b spreads neighbouring keys over the key space.
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
