"""Differential privacy of published ranges: Gaussian noise on the mean of clients' clipped ends.

An end is clipped to the magnitudes [floor, ceiling] and told on the scale of octaves from 0 (floor)
to 1 (ceiling), where a tenfold error costs as much wherever it is made. Exchanging one client for
another moves the mean of n clients' d ends by at most sqrt(d) / n: the sensitivity. The noise is
that of Balle & Wang, "Improving the Gaussian mechanism for differential privacy: analytical
calibration and optimal denoising", ICML 2018, theorem 8, for all ends at once.

The server is trusted: it sees each client's own ranges. What is private is what it writes down,
the files for devices included. Twice the noise's deviation is added to each end, which costs no
privacy: a range that is too wide costs resolution, one that is too narrow cuts values off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from shared_models.ranges import Range, Ranges

_MARGIN = 2.0  # deviations of the noise


@dataclass(frozen=True)
class Noise:
    """How much is promised, and to which magnitudes ends are clipped before."""

    epsilon: float
    delta: float
    floor: float
    ceiling: float


def noised(clients: Sequence[Ranges], noise: Noise, rng: np.random.Generator) -> dict[str, Range]:
    """Returns ranges that say little of any one client; there is at least one, with these names.

    `rng` has to be seeded by nobody who knows the seed: else the noise can be taken off again.
    """
    names = list(clients[0])
    ends = np.array([[_ends(own[name], noise) for name in names] for own in clients])
    deviation = deviation_of(math.sqrt(ends[0].size) / len(clients), noise)
    mean = ends.mean(axis=0)
    told = mean + rng.normal(0.0, deviation, mean.shape) + _MARGIN * deviation
    magnitudes = noise.floor * (noise.ceiling / noise.floor) ** np.clip(told, 0.0, 1.0)
    return {
        name: Range(-float(low), float(high))
        for name, (low, high) in zip(names, magnitudes, strict=True)
    }


def _ends(own: Range, noise: Noise) -> tuple[float, float]:
    """Returns where both ends lie between floor and ceiling; zero is always within a range."""
    whole = math.log(noise.ceiling / noise.floor)
    low, high = (
        math.log(min(max(end, noise.floor), noise.ceiling) / noise.floor) / whole
        for end in (-own.low, own.high)
    )
    return low, high


def deviation_of(sensitivity: float, noise: Noise) -> float:
    """Returns the smallest standard deviation that keeps the promise, by bisection.

    >>> round(deviation_of(1.0, Noise(1.0, 1e-5, 0.25, 64.0)), 2)
    3.73
    """
    low, high = 0.0, 1.0
    while _spent(high, noise.epsilon) > noise.delta:
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if _spent(middle, noise.epsilon) > noise.delta:
            low = middle
        else:
            high = middle
    return sensitivity * high


def _spent(deviation: float, epsilon: float) -> float:
    """Returns the delta of noise with this deviation at sensitivity 1 (theorem 8)."""
    below = NormalDist().cdf
    half, whole = 1.0 / (2.0 * deviation), epsilon * deviation
    return below(half - whole) - math.exp(min(epsilon, 700.0)) * below(-half - whole)
