"""Small convolutional image classifiers."""

from __future__ import annotations

from collections import OrderedDict

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
    encoder = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 32, kernel_size=3),
            conv_relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(13 * 13 * 32, 64),
            dense_relu=nn.ReLU(),
        )
    )
    return ImageClassifier(encoder, 64, classes)


def smaller_cnn(classes: int = 10) -> ImageClassifier:
    """A student of `small_cnn`: one valid 3x3 convolution of 8 channels, max-pool 2, dense 32."""
    encoder = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 8, kernel_size=3),
            conv_relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(13 * 13 * 8, 32),
            dense_relu=nn.ReLU(),
        )
    )
    return ImageClassifier(encoder, 32, classes)


def mcmahan_cnn(classes: int = 10) -> ImageClassifier:
    """The CNN of McMahan et al. 2017, section 3 (1,663,370 parameters): two 5x5 convolutions."""
    encoder = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, kernel_size=5, padding="same"),
            conv1_relu=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, kernel_size=5, padding="same"),
            conv2_relu=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(7 * 7 * 64, 512),
            dense_relu=nn.ReLU(),
        )
    )
    return ImageClassifier(encoder, 512, classes)


def cnn_64(classes: int = 10) -> ImageClassifier:
    """Three valid 3x3 convolutions (32, 64, 128), each max-pooled by 2, dense 128; 64x64x3."""
    layers: list[tuple[str, nn.Module]] = []
    for number, (before, channels) in enumerate(((3, 32), (32, 64), (64, 128)), 1):
        layers.append((f"conv{number}", nn.Conv2d(before, channels, kernel_size=3)))
        layers.append((f"conv{number}_relu", nn.ReLU()))
        layers.append((f"pool{number}", nn.MaxPool2d(2)))
    layers.append(("flatten", nn.Flatten()))
    layers.append(("dense", nn.Linear(6 * 6 * 128, 128)))
    layers.append(("dense_relu", nn.ReLU()))
    return ImageClassifier(nn.Sequential(OrderedDict(layers)), 128, classes)


def tiny_cnn(classes: int = 10) -> ImageClassifier:
    """A CNN for 8x8 images that trains in milliseconds: conv 3x3-16, max-pool 2, dense 32."""
    encoder = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 16, kernel_size=3, padding="same"),
            conv_relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(4 * 4 * 16, 32),
            dense_relu=nn.ReLU(),
        )
    )
    return ImageClassifier(encoder, 32, classes)
