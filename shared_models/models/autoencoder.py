"""Autoencoders: an encoder to a few numbers, a decoder back to the input.

Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural networks", Science 2006;
for sequences Srivastava et al., "Unsupervised learning of video representations using LSTMs",
ICML 2015, section 2.1.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """What an encoder and a decoder make of the input, in its shape."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """Returns the reconstruction, shaped as `x`."""
        found: Tensor = self.decoder(self.encoder(x))
        return found


def image_autoencoder(code: int = 32) -> Autoencoder:
    """Images `(n, 1, 28, 28)` through `code` numbers: two strided convolutions, and back."""
    encoder = OrderedDict(
        conv1=nn.Conv2d(1, 16, kernel_size=3, stride=2, padding=1),
        conv1_relu=nn.ReLU(),
        conv2=nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
        conv2_relu=nn.ReLU(),
        flatten=nn.Flatten(),
        dense=nn.Linear(7 * 7 * 32, code),
    )
    # Kernels as wide as their stride: no padding, which TFLite's converter cannot do here.
    decoder = OrderedDict(
        dense=nn.Linear(code, 7 * 7 * 32),
        dense_relu=nn.ReLU(),
        shape=nn.Unflatten(1, (32, 7, 7)),
        wider1=nn.ConvTranspose2d(32, 16, kernel_size=2, stride=2),
        wider1_relu=nn.ReLU(),
        wider2=nn.ConvTranspose2d(16, 1, kernel_size=2, stride=2),
    )
    return Autoencoder(nn.Sequential(encoder), nn.Sequential(decoder))


def dense_autoencoder(shape: tuple[int, ...], width: int, code: int) -> Autoencoder:
    """Examples of any shape, flat, through one hidden layer, `code` numbers, and back."""
    size = math.prod(shape)
    encoder = OrderedDict(
        flatten=nn.Flatten(),
        dense1=nn.Linear(size, width),
        dense1_relu=nn.ReLU(),
        dense2=nn.Linear(width, code),
    )
    decoder = OrderedDict(
        dense1=nn.Linear(code, width),
        dense1_relu=nn.ReLU(),
        dense2=nn.Linear(width, size),
        shape=nn.Unflatten(1, shape),
    )
    return Autoencoder(nn.Sequential(encoder), nn.Sequential(decoder))


class SequenceAutoencoder(nn.Module):
    """Windows of sensor readings `(n, time, channels)` through the last state of an LSTM.

    A step of the LSTMs is `stride` readings; the decoder is told the state anew at every step.
    """

    def __init__(self, time: int, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self._steps, self._readings = time // stride, stride * channels
        self.encoder = nn.LSTM(self._readings, width, batch_first=True)
        self.decoder = nn.ModuleDict(
            OrderedDict(
                lstm=nn.LSTM(width, width, batch_first=True),
                dense=nn.Linear(width, self._readings),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the reconstruction, shaped as `x`."""
        states, _ = self.encoder(x.reshape(-1, self._steps, self._readings))
        told = states[:, -1:].expand(-1, self._steps, -1)
        states, _ = self.decoder["lstm"](told)
        found: Tensor = self.decoder["dense"](states)
        return found.reshape(x.shape)
