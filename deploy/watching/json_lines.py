"""Events as lines of JSON, for whoever collects logs: what happened, to which run and client."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO

from deploy.events import ArtefactMeasured, Event, ExportStarted
from server.event_log import Ended
from server.events import BlockFinished, Notice, RoundFinished, StageStarted, Waiting
from server.records import RoundRecord


class JsonLines:
    """Writes a line, or more, for an event."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, run: str, event: Event | Ended) -> None:
        """Writes an event of a run."""
        for told in entries(event):
            print(line({"run": run, **told}), file=self._file, flush=True)

    def close(self, _reason: str | None) -> None:
        """Leaves the file to whom it belongs."""


def line(told: Mapping[str, Any]) -> str:
    """Returns an entry of a log with the time now, as JSON on one line.

    What JSON has no number for (NaN, infinities) becomes null.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps(_finite({"time": now, **told}), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def entries(event: Event | Ended) -> Iterator[dict[str, Any]]:
    """Yields what a log is told of an event: a round's failed clients each have a line."""
    match event:
        case RoundFinished(record):
            yield _round(record)
            about = {"stage": record.stage, "round": record.round}
            for failure in record.failures:
                yield {"level": "warning", "event": "client_lost", **about, **asdict(failure)}
        case ArtefactMeasured(artefact):
            yield {"level": "info", "event": "artefact_measured", **asdict(artefact)}
        case Notice(text):
            yield {"level": "info", "event": "notice", "message": text}
        case Ended(status):
            level = "error" if status == "failed" else "info"
            yield {"level": level, "event": "run_ended", **asdict(event)}
        case BlockFinished():
            yield {"level": "debug", "event": "block_finished", **asdict(event)}
        case StageStarted():
            yield {"level": "info", "event": "stage_started", **asdict(event)}
        case Waiting():
            yield {"level": "info", "event": "waiting", **asdict(event)}
        case ExportStarted():
            yield {"level": "info", "event": "export_started", **asdict(event)}


def _round(record: RoundRecord) -> dict[str, Any]:
    told = asdict(record)
    del told["time"], told["failures"], told["injected"]  # a line has its own, each client too
    return {"level": "info", "event": "round_finished", **told, "lost": len(record.failures)}
