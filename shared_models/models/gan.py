"""A generator and a discriminator of 28x28 images, both of dense layers.

Goodfellow et al., "Generative adversarial nets", NeurIPS 2014, section 3. Batch normalisation in
the generator and leaky rectifiers in the discriminator as in Radford et al., "Unsupervised
representation learning with deep convolutional generative adversarial networks", ICLR 2016.
"""

from __future__ import annotations

import functools
from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared_models.randomness import generator

LATENT = 100
SIDE = 28
PIXELS = SIDE * SIDE
_LEAK = 0.2
_MODULUS = 2**20


class Generator(nn.Module):
    """Makes images out of noise `(n, 100)`: dense 256, 512, 784."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(
                dense1=nn.Linear(LATENT, 256),
                norm1=nn.BatchNorm1d(256),
                relu1=nn.ReLU(),
                dense2=nn.Linear(256, 512),
                norm2=nn.BatchNorm1d(512),
                relu2=nn.ReLU(),
                dense3=nn.Linear(512, PIXELS),
                tanh=nn.Tanh(),
            )
        )

    def forward(self, z: Tensor) -> Tensor:
        """Returns images of -1 (black) to 1: `(n, 784)`."""
        images: Tensor = self.layers(z)
        return images


class Discriminator(nn.Module):
    """Tells real images from made ones: dense 512, 256, 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(
                dense1=nn.Linear(PIXELS, 512),
                relu1=nn.LeakyReLU(_LEAK),
                dense2=nn.Linear(512, 256),
                relu2=nn.LeakyReLU(_LEAK),
                dense3=nn.Linear(256, 1),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns a logit per image `(n, 784)`, above 0 for a real one: `(n, 1)`."""
        logits: Tensor = self.layers(images)
        return logits


class Gan(nn.Module):
    """Both nets. They play against each other in `shared_models.objectives.gan`."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator()
        self.discriminator = Discriminator()

    def forward(self, x: Tensor) -> Tensor:
        """Returns, for each real image, a made one and what is thought of both: `(n, 786)`.

        The made image's 784 pixels, the logit of the real one, the logit of the made one. The noise
        is a function of the real image: an evaluation is the same in batches of any size.
        """
        real = x.flatten(1)
        made = self.generator(noise_of_images(real))
        return torch.cat([made, self.discriminator(real), self.discriminator(made)], dim=1)


def noise_of_images(images: Tensor) -> Tensor:
    """Returns normal noise `(n, 100)`, a hash of the bytes of images `(n, 784)` of -1 to 1."""
    shades = ((images + 1.0) * 127.5).round().double()
    # Products of a byte and 20 bits add up exactly in float64, in whatever order: no device and no
    # batch makes other noise.
    sums = shades @ torch.from_numpy(_factors()).to(images.device)
    uniform = (sums.remainder(_MODULUS) + 0.5) / _MODULUS
    noise: Tensor = torch.special.ndtri(uniform)
    return noise.to(images.dtype)


@functools.cache
def _factors() -> NDArray[np.float64]:
    rng = generator(0, "gan", "evaluation")
    return rng.integers(1, _MODULUS, size=(PIXELS, LATENT)).astype(np.float64)
