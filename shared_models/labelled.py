"""Which of a client's examples have labels: some of them, and the rest is what devices collect.

Own data may mark with `UNLABELLED` what has none. Of the labels that are there a share may be
hidden: server and clients compute that alike, a client's count follows from how many it has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared_models.randomness import generator

UNLABELLED = -1


def has_label(y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns which of these examples have labels; masks and boxes always do.

    >>> has_label(np.array([2, UNLABELLED, 0])).tolist()
    [True, False, True]
    """
    return y != UNLABELLED if y.ndim == 1 else np.ones(len(y), np.bool_)


def labelled_count(fraction: float, seed: int, client_id: int, examples: int) -> int:
    """Returns how many of a client's labels are shown: the share, rounded up or down by chance.

    `examples` are those that have one.

    So that in the mean over clients it is the share: of many small ones some have no label at all.

    >>> counts = [labelled_count(0.01, 0, client_id, 50) for client_id in range(1000)]
    >>> set(counts), 450 < sum(counts) < 550
    ({0, 1}, True)
    """
    luck = float(generator(seed, "labelled", client_id, "count").random())
    return min(examples, int(fraction * examples + luck))


def labelled(fraction: float, seed: int, client_id: int, examples: int) -> NDArray[np.int64]:
    """Returns the sorted positions of those among a client's examples with labels.

    Of one client and seed they are drawn in the same order for every share: the labels of a small
    one are among those of a larger one.
    """
    order = generator(seed, "labelled", client_id, "order").permutation(examples)
    count = labelled_count(fraction, seed, client_id, examples)
    return np.sort(order[:count]).astype(np.int64)
