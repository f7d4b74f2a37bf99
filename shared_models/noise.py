"""Noise inside a model, drawn outside of it: dropout and Gaussian codes that take an argument.

torch's own dropout draws from a global generator, which no two workers share. Here the noise is an
array with a name, like a weight, and comes from the client's keyed generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from shared_models.objectives import Batch, Noise, no_noise


class Dropout(nn.Module):
    """Inverted dropout over features of a known shape (without the batch axis).

    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR
    2014. In training, `mask` must be replaced (`torch.func.functional_call`) by what `noise_of`
    draws; in evaluation the module does nothing.
    """

    slot = "mask"
    mask: Tensor

    def __init__(self, probability: float, shape: tuple[int, ...]) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"probability must be in [0, 1), got {probability}")
        self.probability, self.shape = probability, shape
        self.register_buffer("mask", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x * mask` in training, `x` in evaluation."""
        return x * self.mask if self.training else x

    def draw(self, generator: np.random.Generator, examples: int) -> Tensor:
        """Returns a mask `(examples, *shape)`: 0 with the probability, else `1 / (1 - p)`."""
        kept = generator.random((examples, math.prod(self.shape))) >= self.probability
        mask = torch.from_numpy(kept).reshape(examples, *self.shape)
        return mask.double() / (1.0 - self.probability)


class Gaussian(nn.Module):
    """A normal variable of a known shape (without the batch axis), by its mean and log variance.

    Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, section 2.4. In training,
    `drawn` must be replaced by what `noise_of` draws; in evaluation the module gives the mean.
    """

    slot = "drawn"
    drawn: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("drawn", torch.zeros(()), persistent=False)

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Returns `mean + deviation * drawn` in training, the mean in evaluation."""
        return mean + (log_variance / 2).exp() * self.drawn if self.training else mean

    def draw(self, generator: np.random.Generator, examples: int) -> Tensor:
        """Returns standard normal numbers `(examples, *shape)`."""
        return torch.from_numpy(generator.standard_normal((examples, *self.shape)))


def noise_of(model: nn.Module) -> Callable[[np.random.Generator, Batch], Noise]:
    """Returns the function that draws all that a model's step needs, in the order of its modules.

    >>> draw = noise_of(nn.Sequential(nn.Linear(4, 3), Dropout(0.5, (3,))))
    >>> noise = draw(np.random.default_rng(0), Batch(torch.zeros(2, 4), torch.zeros(2)))
    >>> {name: tuple(mask.shape) for name, mask in noise.items()}
    {'1.mask': (2, 3)}
    """
    noisy = {
        name: part for name, part in model.named_modules() if isinstance(part, Dropout | Gaussian)
    }
    if not noisy:
        return no_noise

    def draw(generator: np.random.Generator, batch: Batch) -> Noise:
        dtype = batch.x.dtype if batch.x.is_floating_point() else torch.float32
        return {
            f"{name}.{part.slot}": part.draw(generator, len(batch.y)).to(batch.x.device, dtype)
            for name, part in noisy.items()
        }

    return draw
