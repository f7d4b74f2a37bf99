"""A round as named numbers: what trackers draw over the rounds."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.metrics.rounds import outcomes, phases
from server.records import RoundRecord


def scalars(record: RoundRecord) -> Mapping[str, float]:
    """Returns a round's numbers by name, each below its stage."""
    told: dict[str, float | None] = {"train_loss": record.train_loss}
    told |= {f"eval/{name}": value for name, value in (record.eval or {}).items()}
    told |= {f"clients_eval/{name}": value for name, value in (record.clients_eval or {}).items()}
    told |= {f"clients/{outcome}": float(count) for outcome, count in outcomes(record).items()}
    told |= {"seconds/total": record.seconds.total}
    told |= {f"seconds/{phase}": seconds for phase, seconds in phases(record).items()}
    told |= {"bytes/down": float(record.bytes_down), "bytes/up": float(record.bytes_up)}
    told |= {"memory_mb": record.rss_mb, "waited_s": record.waited_s}
    return {f"{record.stage}/{name}": value for name, value in told.items() if value is not None}
