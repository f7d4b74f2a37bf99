"""What a whole run tells: the server's events, and those of the export stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from server.events import Event as LearningEvent

if TYPE_CHECKING:
    from deploy.edge.artefact import Artefact


@dataclass(frozen=True)
class ExportStarted:
    """An export stage begins."""

    stage: str


@dataclass(frozen=True)
class ArtefactMeasured:
    """A file was written, executed and compared."""

    artefact: Artefact


Event: TypeAlias = LearningEvent | ExportStarted | ArtefactMeasured
Observer: TypeAlias = Callable[[Event], None]
