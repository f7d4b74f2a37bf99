"""Small convolutional image classifiers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """An encoder that makes a vector out of an image `(n, c, h, w)`, and a linear head."""

    def __init__(self, encoder: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits `(n, classes)`."""
        logits: Tensor = self.head(self.encoder(x))
        return logits


def small_cnn(classes: int = 10) -> ImageClassifier:
    """One valid 3x3 convolution of 32 channels on 28x28, max-pool 2, dense 64."""
    return _classifier(_convolutions(1, (32,)), 13 * 13 * 32, 64, classes)


def smaller_cnn(classes: int = 10) -> ImageClassifier:
    """A student of `small_cnn`: one valid 3x3 convolution of 8 channels, max-pool 2, dense 32."""
    return _classifier(_convolutions(1, (8,)), 13 * 13 * 8, 32, classes)


def mcmahan_cnn(classes: int = 10) -> ImageClassifier:
    """The CNN of McMahan et al. 2017, section 3 (1,663,370 parameters): two 5x5 convolutions."""
    return _classifier(_convolutions(1, (32, 64), 5, "same"), 7 * 7 * 64, 512, classes)


def cnn_64(classes: int = 10) -> ImageClassifier:
    """Three valid 3x3 convolutions (32, 64, 128), each max-pooled by 2, dense 128; 64x64x3."""
    return _classifier(_convolutions(3, (32, 64, 128)), 6 * 6 * 128, 128, classes)


def tiny_cnn(classes: int = 10) -> ImageClassifier:
    """A CNN for 8x8 images that trains in milliseconds: conv 3x3-16, max-pool 2, dense 32."""
    return _classifier(_convolutions(1, (16,), padding="same"), 4 * 4 * 16, 32, classes)


def _convolutions(
    channels: int, widths: Sequence[int], kernel_size: int = 3, padding: int | str = 0
) -> dict[str, nn.Module]:
    """Returns convolutions, each max-pooled by 2; they are numbered where there are several."""
    layers: dict[str, nn.Module] = {}
    for number, (before, width) in enumerate(pairwise((channels, *widths)), 1):
        place = str(number) if len(widths) > 1 else ""
        layers[f"conv{place}"] = nn.Conv2d(before, width, kernel_size, padding=padding)
        layers[f"conv{place}_relu"] = nn.ReLU()
        layers[f"pool{place}"] = nn.MaxPool2d(2)
    return layers


def _classifier(
    convolutions: dict[str, nn.Module], flat: int, dense: int, classes: int
) -> ImageClassifier:
    """Returns the classifier with a dense layer between `flat` features and the head."""
    rest = {"flatten": nn.Flatten(), "dense": nn.Linear(flat, dense), "dense_relu": nn.ReLU()}
    encoder = nn.Sequential(OrderedDict({**convolutions, **rest}))
    return ImageClassifier(encoder, dense, classes)
