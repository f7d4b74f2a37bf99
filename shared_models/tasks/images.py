"""Image classification on MNIST, Fashion-MNIST and the 8x8 digits."""

from __future__ import annotations

from shared_models.inputs import InputSpec
from shared_models.models.cnn import cnn_64, mcmahan_cnn, small_cnn, smaller_cnn, tiny_cnn
from shared_models.models.mlp import Mlp
from shared_models.tasks.classification import classification

BYTES_28 = InputSpec(shape=(1, 28, 28), std=(255.0,))
_COLOUR_64 = InputSpec(shape=(3, 64, 64), std=(255.0,))
_DIGITS_8 = InputSpec(shape=(1, 8, 8), std=(16.0,), white=16.0)

MNIST_CNN = classification("mnist-cnn", "mnist", BYTES_28, small_cnn)
MNIST_CNN_SMALL = classification("mnist-cnn-small", "mnist", BYTES_28, smaller_cnn)
MNIST_2NN = classification("mnist-2nn", "mnist", BYTES_28, Mlp)
MNIST_CNN_MCMAHAN = classification("mnist-cnn-mcmahan", "mnist", BYTES_28, mcmahan_cnn)
FASHION_CNN = classification("fashion-cnn", "fashion-mnist", BYTES_28, small_cnn)
IMAGE_CNN_64 = classification("image-cnn-64", "fashion-64", _COLOUR_64, cnn_64)
DIGITS_CNN = classification("digits-cnn", "digits", _DIGITS_8, tiny_cnn)
