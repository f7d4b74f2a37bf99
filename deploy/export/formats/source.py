"""What an exporter is given, and what it tells of the file that it wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from shared_models.ranges import Ranges


@dataclass(frozen=True)
class Source:
    """A trained model in evaluation mode, and examples of its input `(n, *shape)`.

    The examples set the ranges of activations, unless `ranges` are given: then they are probes that
    tell which tensor of a file is which value. `calibrated` says whose ranges these are. `workshop`
    is an empty folder.
    """

    model: nn.Module
    calibration: NDArray[Any]
    workshop: Path
    ranges: Ranges | None = None
    calibrated: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.calibration.shape[1:])

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """Returns a file of the workshop, made when it is asked for first."""
        path = self.workshop / name
        if not path.exists():
            make(path)
        return path


@dataclass(frozen=True)
class Made:
    """What was quantized, and what else a user should know of how the file came about."""

    quantization: str
    notes: str = ""


def calibration_note(source: Source) -> str:
    """Returns what a file with int8 activations tells of its ranges."""
    return f"calibration: {source.calibrated}" if source.calibrated else ""
