"""OpenTelemetry: a round is a span, its phases are spans in it.

The library reads the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, ...);
without an endpoint nothing of it is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deploy.events import Event
from deploy.metrics.rounds import outcomes, phases
from server.event_log import Ended
from server.events import RoundFinished
from server.records import RoundRecord

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables name a collector, and do not switch it all off."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(environment.get(name) for name in _ENDPOINTS)


@dataclass(frozen=True)
class Phase:
    """A part of a round; both times are seconds since the epoch."""

    name: str
    began: float
    ended: float


def timeline(record: RoundRecord) -> Iterator[Phase]:
    """Yields a round's phases as they followed each other.

    The record was made when the server had stepped; evaluation and checkpoint came after.
    """
    seconds = phases(record)
    now = record.time - seconds["train"] - seconds["aggregate"]
    for name, duration in seconds.items():
        if duration:
            yield Phase(name, now, now + duration)
        now += duration


class Spans:
    """Sends a trace for each round."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "wildflower"})  # OTEL_SERVICE_NAME goes before
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("wildflower")

    def __call__(self, run: str, event: Event | Ended) -> None:
        """Takes an event."""
        from opentelemetry.trace import set_span_in_context

        if not isinstance(event, RoundFinished):
            return
        parts = list(timeline(event.record))
        about = _attributes(run, event.record)
        span = self._tracer.start_span("round", attributes=about, start_time=_ns(parts[0].began))
        inside = set_span_in_context(span)
        for part in parts:
            child = self._tracer.start_span(part.name, inside, start_time=_ns(part.began))
            child.end(_ns(part.ended))
        span.end(_ns(parts[-1].ended))

    def close(self, _reason: str | None) -> None:
        """Sends what is left; a collector that is away is not waited for much longer."""
        self._provider.shutdown()


def _attributes(run: str, record: RoundRecord) -> dict[str, str | int]:
    about: dict[str, str | int] = {"run": run, "stage": record.stage, "round": record.round}
    about |= {f"clients.{outcome}": count for outcome, count in outcomes(record).items()}
    return {f"wildflower.{key}": value for key, value in about.items()}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
