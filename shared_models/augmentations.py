"""Other views of the same example: what may change about it without it being something else.

Drawn by numpy outside of a step, applied by functions of tensors alone, so that a step can be
mapped over clients and gives the same bytes whoever takes it.

Images as in Chen et al., "A simple framework for contrastive learning of visual representations",
ICML 2020, appendix A (crops, here with small turns; grey images have no colours to distort).
Windows of inertial sensors as in Um et al., "Data augmentation of wearable sensor data for
Parkinson's disease monitoring using convolutional neural networks", ICMI 2017, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from shared_models.errors import InputError
from shared_models.inputs import InputSpec
from shared_models.objectives import Noise

Rng: TypeAlias = np.random.Generator
Values: TypeAlias = NDArray[np.float64]
_TURN = 0.35  # radians
_LARGEST, _SMALLEST = 1.0, 0.6  # of the image that a crop shows, by side
_SHEAR = 0.2
_DIMMEST = 0.6
_SPECKLE = 0.05  # standard deviation, of an image's full scale

_JITTER = 0.05  # standard deviations of the channel
_SCALE = 0.2
_SENSOR_TURN = 0.6  # radians, at most
_DROPPED = 0.1  # of the channels
_WARP, _KNOTS = 0.3, 4


@dataclass(frozen=True)
class Augmentation:
    """`draw(generator, examples)` gives the noise, `apply(x, noise)` other views of the examples.

    Both of shape `(examples, *input.shape)`; noise is float64 and by name.
    """

    draw: Callable[[Rng, int], Noise]
    apply: Callable[[Tensor, Noise], Tensor]


def augmentation_of(spec: InputSpec) -> Augmentation:
    """Returns what suits an input: `(c, h, w)` is an image, `(time, channels)` a sensor's window.

    Raises `InputError` for any other.
    """
    if spec.dtype == "float32" and len(spec.shape) == 3:
        return _images(spec)
    if spec.dtype == "float32" and len(spec.shape) == 2:
        return _windows(spec)
    raise InputError(
        f"there are no augmentations for input of shape {spec.shape} and type {spec.dtype}: "
        "contrastive objectives are for images and for windows of sensors"
    )


def _images(spec: InputSpec) -> Augmentation:
    _, height, width = shape = spec.shape
    black, scale = (np.array(own) / spec.white for own in (spec.mean, spec.std))

    def draw(rng: Rng, examples: int) -> Noise:
        return {
            "affine": _tensor(_affine(rng, examples)),
            "light": _tensor(rng.uniform(_DIMMEST, 1.0, (examples, 1, 1, 1))),
            "speckle": _tensor(_SPECKLE * rng.standard_normal((examples, *shape))),
        }

    def apply(x: Tensor, noise: Noise) -> Tensor:
        rows = torch.linspace(-1.0, 1.0, height, dtype=x.dtype, device=x.device)
        columns = torch.linspace(-1.0, 1.0, width, dtype=x.dtype, device=x.device)
        y_at, x_at = torch.meshgrid(rows, columns, indexing="ij")
        places = torch.stack([x_at, y_at, torch.ones_like(x_at)], dim=-1).reshape(-1, 3)
        grid = (places @ noise["affine"].transpose(1, 2)).reshape(-1, height, width, 2)
        # From 0, which is black, to 1: what comes in from outside is black, as it is dimmed to.
        offset, full = (_tensor(own).to(x.device, x.dtype) for own in (black, scale))
        shown = grid_sample(x * full + offset, grid, align_corners=True)
        return (shown * noise["light"] + noise["speckle"] - offset) / full

    return Augmentation(draw, apply)


def _affine(rng: Rng, examples: int) -> Values:
    """Returns where in the image each view looks: `(examples, 2, 3)`."""
    turn, shear = rng.uniform(-_TURN, _TURN, examples), rng.uniform(-_SHEAR, _SHEAR, examples)
    side = rng.uniform(_SMALLEST, _LARGEST, (examples, 2))
    shift = rng.uniform(-1.0, 1.0, (examples, 2)) * (1.0 - side)
    cos, sin = np.cos(turn), np.sin(turn)
    along = np.stack([side[:, 0] * cos, side[:, 1] * (shear * cos - sin), shift[:, 0]], axis=1)
    across = np.stack([side[:, 0] * sin, side[:, 1] * (shear * sin + cos), shift[:, 1]], axis=1)
    return np.stack([along, across], axis=1)


def _windows(spec: InputSpec) -> Augmentation:
    time, channels = spec.shape
    triples = channels // 3 if channels % 3 == 0 else 0  # the three axes of each sensor
    mean, std = (np.broadcast_to(own, (channels,)).copy() for own in (spec.mean, spec.std))

    def draw(rng: Rng, examples: int) -> Noise:
        return {
            "jitter": _tensor(_JITTER * rng.standard_normal((examples, time, channels))),
            "scale": _tensor(1.0 + _SCALE * rng.standard_normal((examples, 1, channels))),
            "kept": _tensor(rng.random((examples, 1, channels)) >= _DROPPED),
            "turn": _tensor(_rotations(rng, examples)),
            "times": _tensor(_warped(rng, examples, time)),
        }

    def turned(x: Tensor, turn: Tensor) -> Tensor:
        if not triples:
            return x
        centre, width = (_tensor(own).to(x.device, x.dtype) for own in (mean, std))
        raw = x * width + centre  # as input, each axis has a scale of its own
        raw = raw.reshape(*raw.shape[:2], triples, 3)
        moved = torch.einsum("ntsa,nba->ntsb", raw, turn).flatten(2)
        return (moved - centre) / width

    def apply(x: Tensor, noise: Noise) -> Tensor:
        at = noise["times"]
        below = at.floor().clamp(max=time - 2)
        first = below.long().unsqueeze(2).expand(-1, -1, channels)
        share = (at - below).unsqueeze(2)
        x = x.gather(1, first) * (1 - share) + x.gather(1, first + 1) * share
        x = turned(x, noise["turn"]) * noise["scale"] + noise["jitter"]
        return x * noise["kept"]

    return Augmentation(draw, apply)


def _rotations(rng: Rng, examples: int) -> Values:
    """Returns a rotation about a random axis for each example, `(n, 3, 3)`: Rodrigues' formula."""
    axis = rng.standard_normal((examples, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = rng.uniform(-_SENSOR_TURN, _SENSOR_TURN, (examples, 1, 1))
    cross = np.cross(axis[:, None, :], np.eye(3))
    turn: Values = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    return turn


def _warped(rng: Rng, examples: int, time: int) -> Values:
    """Returns times at which to read each window, faster here and slower there: `(n, time)`."""
    knots = np.exp(_WARP * rng.standard_normal((examples, _KNOTS)))
    places, at = np.linspace(0, 1, _KNOTS), np.linspace(0, 1, time)
    speed = np.stack([np.interp(at, places, own) for own in knots])
    passed = np.cumsum(speed, axis=1) - speed[:, :1]
    times: Values = passed / passed[:, -1:] * (time - 1)
    return times


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float64))
