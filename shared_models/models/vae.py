"""A variational autoencoder: what it makes of an image is drawn around a code.

Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, appendix C: a Gaussian encoder and
a Bernoulli decoder, dense layers with one hidden layer each.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from shared_models.noise import Gaussian


class Vae(nn.Module):
    """Images `(n, 1, side, side)` of values from 0 to 1."""

    def __init__(self, side: int = 28, width: int = 200, code: int = 16) -> None:
        super().__init__()
        size = side * side
        self.encoder = nn.Sequential(
            OrderedDict(flatten=nn.Flatten(), dense=nn.Linear(size, width), dense_relu=nn.ReLU())
        )
        self.mean, self.spread = nn.Linear(width, code), nn.Linear(width, code)
        self.latent = Gaussian((code,))
        self.decoder = nn.Sequential(
            OrderedDict(
                dense1=nn.Linear(code, width),
                dense1_relu=nn.ReLU(),
                dense2=nn.Linear(width, size),
                shape=nn.Unflatten(1, (1, side, side)),
            )
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Returns the decoder's mean at the code's mean; in training what the bound is made of.

        That is the decoder's logits at a drawn code, shaped as `x`, and the code's mean and the
        logarithm of its variance, `(n, code)`.
        """
        features = self.encoder(x)
        mean = self.mean(features)
        if not self.training:
            found: Tensor = self.decoder(mean).sigmoid()
            return found
        spread = self.spread(features)
        return self.decoder(self.latent(mean, spread)), mean, spread
