"""Decoders: from an encoder's features back to its input. No device ever gets one."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

_IMAGE_CHANNELS = 16
_WINDOW_CHANNELS = 32


def decoder_of(features: int, shape: tuple[int, ...], *, recurrent: bool) -> nn.Module:
    """Returns a decoder to `(n, *shape)`: an image `(c, h, w)`, or a window `(time, channels)`."""
    if len(shape) == 3:
        return _image_decoder(features, *shape)
    if recurrent:
        return RecurrentDecoder(features, *shape)
    return WindowDecoder(features, *shape)


def _image_decoder(features: int, channels: int, height: int, width: int) -> nn.Sequential:
    """Dense to a quarter of the size, then twice: nearest neighbours, convolution 3x3."""
    inner, (h, w) = _IMAGE_CHANNELS, (-(-height // 4), -(-width // 4))
    return nn.Sequential(
        OrderedDict(
            dense=nn.Linear(features, inner * h * w),
            dense_relu=nn.ReLU(),
            shape=nn.Unflatten(1, (inner, h, w)),
            wider1=nn.Upsample(size=(-(-height // 2), -(-width // 2))),
            conv1=nn.Conv2d(inner, inner, kernel_size=3, padding=1),
            conv1_relu=nn.ReLU(),
            wider2=nn.Upsample(size=(height, width)),
            conv2=nn.Conv2d(inner, channels, kernel_size=3, padding=1),
        )
    )


class WindowDecoder(nn.Module):
    """Dense to a quarter of the time steps, then twice: nearest neighbours, convolution of 5."""

    def __init__(self, features: int, time: int, channels: int) -> None:
        super().__init__()
        inner, steps = _WINDOW_CHANNELS, -(-time // 4)
        self.parts = nn.Sequential(
            OrderedDict(
                dense=nn.Linear(features, inner * steps),
                dense_relu=nn.ReLU(),
                shape=nn.Unflatten(1, (inner, steps)),
                longer1=nn.Upsample(size=-(-time // 2)),
                conv1=nn.Conv1d(inner, inner, kernel_size=5, padding=2),
                conv1_relu=nn.ReLU(),
                longer2=nn.Upsample(size=time),
                conv2=nn.Conv1d(inner, channels, kernel_size=5, padding=2),
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """Returns windows `(n, time, channels)`."""
        channels_first: Tensor = self.parts(features)
        return channels_first.transpose(1, 2)


class RecurrentDecoder(nn.Module):
    """An LSTM that sees the features at each time step, and a dense layer for its states.

    Srivastava et al., "Unsupervised learning of video representations using LSTMs", ICML 2015,
    section 2.1, with the features as the input of all steps in place of the first state.
    """

    def __init__(self, features: int, time: int, channels: int) -> None:
        super().__init__()
        self.time = time
        self.lstm = nn.LSTM(features, features, batch_first=True)
        self.dense = nn.Linear(features, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Returns windows `(n, time, channels)`."""
        states, _ = self.lstm(features.unsqueeze(1).expand(-1, self.time, -1))
        windows: Tensor = self.dense(states)
        return windows
