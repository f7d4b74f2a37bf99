"""Segmentation: which pixels are the foreground."""

from __future__ import annotations

import functools

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from shared_models.inputs import InputSpec
from shared_models.models.unet import UNet
from shared_models.objectives.supervised import supervised
from shared_models.task import Task

_BYTES_32 = InputSpec(shape=(1, 32, 32), std=(255.0,))


def pixel_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean binary cross-entropy over all pixels."""
    return binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype))


def overlap(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Returns how told `(n, 1, h, w)` and true foreground `(n, h, w)` overlap, for each image.

    `iou` is intersection over union, `dice` twice the intersection over the sum of both; 1 where
    there is no foreground and none was told.
    """
    told, truth = (outputs[:, 0] > 0).flatten(1), (targets > 0).flatten(1)
    common = (told & truth).sum(1).float()
    both = told.sum(1).float() + truth.sum(1).float()
    nothing = (both == 0).float()
    return {
        "iou": (common + nothing) / (both - common + nothing),
        "dice": (2 * common + nothing) / (both + nothing),
    }


def segmentation(
    name: str, dataset: str, inputs: InputSpec, width: int = 8, depth: int = 2
) -> Task:
    """Returns the task of a U-Net of a width and depth on data whose labels are masks."""
    channels, *sides = inputs.shape
    return Task(
        name,
        dataset,
        inputs,
        labels=("background", "foreground"),
        make_model=functools.partial(UNet, channels, width, depth),
        objective=supervised,
        loss=pixel_loss,
        metrics=overlap,
        answer="mask",
        label_shape=tuple(sides),
    )


MNIST_UNET = segmentation("mnist-unet", "mnist-masks", _BYTES_32)
FASHION_UNET = segmentation("fashion-unet", "fashion-masks", _BYTES_32)
