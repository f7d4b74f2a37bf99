"""Images made out of noise: a generator and a discriminator that play against each other."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from shared_models.frechet import frechet_distance
from shared_models.inputs import InputSpec
from shared_models.measures import Pooled
from shared_models.models.gan import LATENT, PIXELS, SIDE, Gan
from shared_models.objectives.gan import gan
from shared_models.task import Deployed, Task, as_given

_IMAGES = InputSpec(shape=(1, SIDE, SIDE), mean=(127.5,), std=(127.5,))


def told_apart(outputs: Tensor, _: Tensor) -> Tensor:
    """Returns the discriminator's loss on real images and as many made ones."""
    real, made = outputs[:, PIXELS], outputs[:, PIXELS + 1]
    return softplus(-real).mean() + softplus(made).mean()


def recognised(outputs: Tensor, _: Tensor) -> dict[str, Tensor]:
    """Returns how often the discriminator is right: of each real and each made image."""
    return {
        "real_recognised": (outputs[:, PIXELS] > 0).float(),
        "made_recognised": (outputs[:, PIXELS + 1] <= 0).float(),
    }


def _rows(outputs: Tensor, targets: Tensor, y: Tensor) -> Tensor:
    made, real = outputs[:, :PIXELS], targets.flatten(1)
    return torch.cat([made, real, y[:, None].to(made.dtype)], dim=1)


def _distance(rows: NDArray[Any]) -> float:
    made, real, labels = np.split(rows, [PIXELS, 2 * PIXELS], axis=1)
    return frechet_distance(made, real, labels[:, 0].astype(np.int64))


def noise(generator: np.random.Generator, examples: int) -> NDArray[Any]:
    """Returns what the generator makes images of: `(examples, 100)`, normal."""
    return generator.standard_normal((examples, LATENT)).astype(np.float32)


MNIST_GAN = Task(
    "mnist-gan",
    "mnist",
    _IMAGES,
    labels=(),
    make_model=Gan,
    objective=functools.partial(gan, latent=LATENT),
    loss=told_apart,
    metrics=recognised,
    answer="values",
    target=as_given,
    pooled={"frechet_distance": Pooled(_rows, _distance)},
    costs=frozenset({"frechet_distance"}),
    deployed=Deployed("generator", InputSpec(shape=(LATENT,)), noise),
)
