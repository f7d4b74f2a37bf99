"""What all classification tasks share: the loss, the metrics, the objective."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared_models.datasets.catalog import CATALOG
from shared_models.errors import InputError
from shared_models.inputs import InputSpec
from shared_models.objectives.supervised import supervised
from shared_models.task import Task


def accuracy(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Returns 1.0 for every example whose largest logit is the right one, else 0.0."""
    return {"accuracy": (outputs.argmax(dim=1) == targets).float()}


def classification(
    name: str,
    dataset: str,
    inputs: InputSpec,
    make_model: Callable[[], nn.Module],
    labels: tuple[str, ...] = (),
) -> Task:
    """Returns the task of telling the labels of `dataset` apart; without `labels` it says them.

    Raises `InputError` where neither does.
    """
    known = CATALOG[dataset].labels if dataset in CATALOG else ()
    if not (labels or known):
        raise InputError(f"{dataset!r} does not say what its labels mean; give classification them")
    told = labels or known
    return Task(name, dataset, inputs, told, make_model, supervised, cross_entropy, accuracy)
