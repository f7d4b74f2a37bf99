"""What a share of a cohort is in clients, and which cohorts are too small for a robust rule.

Config, server and aggregators ask here: what can never work is refused before it starts.
"""

from __future__ import annotations

import math


def share_of(clients: int, fraction: float) -> float:
    """Returns `fraction * clients`, a whole number where it is one in decimals.

    >>> 0.29 * 100, share_of(100, 0.29)
    (28.999999999999996, 29.0)
    """
    return round(fraction * clients, 9)


def malicious_of(clients: int, fraction: float) -> int:
    """Returns `f`, rounded up: a tenth of eight clients is one."""
    return math.ceil(share_of(clients, fraction))


def trimmed_of(clients: int, fraction: float) -> int:
    """Returns how many values are dropped at each end, rounded down."""
    return math.floor(share_of(clients, fraction))


def krum_fault(clients: int, fraction: float) -> str | None:
    """Returns why Krum cannot work with so many updates, or None.

    `f` is rounded up, so that more clients may be too few where fewer are enough:

    >>> [clients for clients in range(12) if krum_fault(clients, 0.2) is None]
    [5, 7, 8, 9, 10, 11]
    """
    malicious = malicious_of(clients, fraction)
    if clients >= 2 * malicious + 3:
        return None
    return (
        f"krum needs {2 * malicious + 3} usable updates to tolerate {malicious} malicious ones "
        f"(byzantine_fraction {fraction:g}), there are {clients}"
    )


def trim_fault(clients: int, fraction: float) -> str | None:
    """Returns why a trimmed mean would be the plain mean of so many updates, or None.

    >>> trim_fault(9, 0.1)
    'trim_fraction 0.1 of 9 updates is nobody: none would be trimmed'
    """
    if not fraction or trimmed_of(clients, fraction):
        return None
    return f"trim_fraction {fraction:g} of {clients} updates is nobody: none would be trimmed"
