"""Tasks whose answer is the input again: autoencoders, a VAE, and what they find unusual."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, mse_loss

from shared_models.datasets.catalog import CATALOG
from shared_models.datasets.motes import WINDOW
from shared_models.inputs import InputSpec
from shared_models.measures import ANOMALY_AUC, EXPLAINED, Pooled
from shared_models.models.autoencoder import (
    SequenceAutoencoder,
    dense_autoencoder,
    image_autoencoder,
)
from shared_models.models.vae import Vae
from shared_models.objectives.supervised import supervised
from shared_models.objectives.vae import variational
from shared_models.task import Task, as_given
from shared_models.tasks.images import BYTES_28
from shared_models.tasks.sequences import WATCH

_EXPLAINED: Mapping[str, Pooled] = {"explained_variance": EXPLAINED}
# Scale of humidity in % and temperature in degrees Celsius, rounded from the training readings.
_MOTES = InputSpec(shape=(WINDOW, 2), mean=(44.6, 29.1), std=(3.1, 1.6))


def _motes_model() -> nn.Module:
    return dense_autoencoder((WINDOW, 2), width=32, code=4)


def no_metrics(_: Tensor, __: Tensor) -> dict[str, Tensor]:
    """Returns nothing: what is told of such a model is told of a whole set."""
    return {}


def reconstruction(
    name: str, dataset: str, inputs: InputSpec, make_model: Callable[[], nn.Module]
) -> Task:
    """Returns the task of telling the input again."""
    return Task(
        name,
        dataset,
        inputs,
        (),
        make_model,
        supervised,
        mse_loss,
        no_metrics,
        answer="values",
        target=as_given,
        pooled=_EXPLAINED,
    )


MNIST_AUTOENCODER = reconstruction("mnist-autoencoder", "mnist", BYTES_28, image_autoencoder)
MNIST_VAE = replace(
    reconstruction("mnist-vae", "mnist", BYTES_28, Vae),
    objective=variational,
    loss=binary_cross_entropy,
)
WATCH_AUTOENCODER = reconstruction(
    "watch-autoencoder", "watch", WATCH, lambda: SequenceAutoencoder(100, 6, 64, stride=4)
)
MOTES_AUTOENCODER = replace(
    reconstruction("motes-autoencoder", "motes", _MOTES, _motes_model),
    labels=CATALOG["motes"].labels,
    pooled={"roc_auc": ANOMALY_AUC, **_EXPLAINED},
)
