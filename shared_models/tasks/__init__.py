"""The tasks by name. Nothing here imports torch before a task is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from shared_models.errors import InputError, did_you_mean
from shared_models.tasks.own import is_own, load_own

if TYPE_CHECKING:
    from shared_models.task import Task

# name -> module:attribute
TASKS = {
    "digits-cnn": "shared_models.tasks.images:DIGITS_CNN",
    "fashion-cnn": "shared_models.tasks.images:FASHION_CNN",
    "fashion-unet": "shared_models.tasks.segmentation:FASHION_UNET",
    "image-cnn-64": "shared_models.tasks.images:IMAGE_CNN_64",
    "mnist-2nn": "shared_models.tasks.images:MNIST_2NN",
    "mnist-autoencoder": "shared_models.tasks.autoencoders:MNIST_AUTOENCODER",
    "mnist-cnn": "shared_models.tasks.images:MNIST_CNN",
    "mnist-cnn-mcmahan": "shared_models.tasks.images:MNIST_CNN_MCMAHAN",
    "mnist-cnn-small": "shared_models.tasks.images:MNIST_CNN_SMALL",
    "mnist-gan": "shared_models.tasks.gan:MNIST_GAN",
    "mnist-unet": "shared_models.tasks.segmentation:MNIST_UNET",
    "mnist-vae": "shared_models.tasks.autoencoders:MNIST_VAE",
    "motes-autoencoder": "shared_models.tasks.autoencoders:MOTES_AUTOENCODER",
    "shakespeare-lstm": "shared_models.tasks.sequences:SHAKESPEARE_LSTM",
    "text-lstm": "shared_models.tasks.texts:TEXT_LSTM",
    "text-rnn": "shared_models.tasks.texts:TEXT_RNN",
    "trees-detector": "shared_models.tasks.detection:TREES_DETECTOR",
    "watch-autoencoder": "shared_models.tasks.autoencoders:WATCH_AUTOENCODER",
    "watch-cnn": "shared_models.tasks.sequences:WATCH_CNN",
    "watch-lstm": "shared_models.tasks.sequences:WATCH_LSTM",
    "watch-lstm-small": "shared_models.tasks.sequences:WATCH_LSTM_SMALL",
}


def no_task(name: str) -> str:
    """Returns what to say of a name that is no task's."""
    own = "; one of your own is called 'module:NAME', without .py" if ".py" in name else ""
    return f"{name!r} does not exist; {did_you_mean(name, TASKS)}{own}"


def load_task(name: str) -> Task:
    """Returns a task by its name, or a user's own by `module:attribute`.

    Raises `InputError` that names the nearest one when there is none.
    """
    if is_own(name):
        return load_own(name)
    if name not in TASKS:
        raise InputError(f"task {no_task(name)}")
    module, attribute = TASKS[name].split(":")
    task: Task = getattr(importlib.import_module(module), attribute)
    return task
