"""How far made images are from real ones, in the features of a small classifier.

Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium",
NeurIPS 2017, section 2 (FID):

    d^2 = |m - m'|^2 + Tr(C + C' - 2 (C C')^(1/2))

over means m and covariances C of features. There the features are a large network's, trained on
photographs. Here they are the 64 of a small CNN that is trained for two epochs on the real images
of the evaluation and their labels, from seed 0, and kept: distances compare with each other where
the real images are the same ones, and with nothing else.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from shared_models.models.cnn import small_cnn
from shared_models.randomness import generator

LEAST = 500  # images, for a covariance of 64 features
_EPOCHS, _BATCH, _RATE = 2, 50, 1e-3

Values = NDArray[np.float64]
Features = Callable[[NDArray[Any]], Values]


def frechet_distance(made: NDArray[Any], real: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Returns d^2 between images `(n, 784)`, NaN of fewer than 500 or of those that are no numbers.

    >>> frechet_distance(np.zeros((3, 784)), np.zeros((3, 784)), np.zeros(3, np.int64))
    nan
    """
    if len(real) < LEAST or not np.isfinite(made).all():
        return float("nan")
    features, m, c = _of_real(_Real(real, labels))
    mean, covariance = _moments(features(made))
    root = _root(c)
    # Tr (C C')^(1/2) = Tr (C^(1/2) C' C^(1/2))^(1/2): symmetric, so that no eigenvalue is complex.
    mixed = np.trace(_root(root @ covariance @ root))
    return float(((m - mean) ** 2).sum() + np.trace(c) + np.trace(covariance) - 2 * mixed)


class _Real:
    """Real images and labels that are the same key wherever they have the same bytes."""

    def __init__(self, images: NDArray[Any], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images.astype(np.float32), labels
        self._digest = hashlib.sha256(self.images.tobytes() + labels.tobytes()).digest()

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Real) and self._digest == other._digest


@functools.lru_cache(maxsize=2)
def _of_real(real: _Real) -> tuple[Features, Values, Values]:
    """Returns the features, and their mean and covariance over the real images."""
    features = _trained(real)
    return (features, *_moments(features(real.images)))


def _trained(real: _Real) -> Features:
    # An evaluation runs in inference mode, whose tensors cannot be trained.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = small_cnn(int(real.labels.max()) + 1)
        x, y = _as_images(real.images), torch.from_numpy(real.labels)
        optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
        rng = generator(0, "frechet", "order")
        with torch.enable_grad():
            for _ in range(_EPOCHS):
                for index in torch.split(torch.from_numpy(rng.permutation(len(y))), _BATCH):
                    optimizer.zero_grad()
                    cross_entropy(model(x[index]), y[index]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()

    @torch.inference_mode()
    def features(images: NDArray[Any]) -> Values:
        parts = torch.split(_as_images(images), 1000)
        return torch.cat([model.encoder(part) for part in parts]).double().numpy()

    return features


def _as_images(flat: NDArray[Any]) -> torch.Tensor:
    side = round(flat.shape[1] ** 0.5)
    images = torch.tensor(flat, dtype=torch.float32).view(-1, 1, side, side)
    return images.contiguous(memory_format=torch.channels_last)


def _moments(features: Values) -> tuple[Values, Values]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def _root(matrix: Values) -> Values:
    """Returns the square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: Values = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return root
