"""Events as plain lines: what a log file, or a terminal that is none, gets to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from server.events import Event, Notice, RoundFinished, StageStarted, Waiting
from server.records import Failure, RoundRecord

_SHOWN = 3


def print_event(event: Event) -> None:
    """Prints one line per stage and per round."""
    line = describe(event)
    if line:
        print(line, flush=True)


def describe(event: Event) -> str:
    """Returns the line for an event, empty for those that are too small to tell."""
    if isinstance(event, StageStarted):
        resumed = f", going on after round {event.done}" if event.done else ""
        return (
            f"{event.stage}: {event.rounds} rounds, "
            f"{event.clients_per_round} of {event.clients} clients each{resumed}"
        )
    if isinstance(event, RoundFinished):
        return describe_round(event.record)
    if isinstance(event, Waiting):
        return _describe_waiting(event)
    return f"note: {event.text}" if isinstance(event, Notice) else ""


def _describe_waiting(event: Waiting) -> str:
    count = event.unanswered
    silent = f"; {count} connected device{'s have' if count > 1 else ' has'} yet to answer"
    return (
        f"waiting for devices: {event.clients} of {event.wanted} clients are here "
        f"(up to {event.seconds:.0f} s){silent if count else ''}"
    )


def describe_round(record: RoundRecord) -> str:
    """Returns e.g. `train 3: 8/10 clients, train loss 1.2340, accuracy 0.8120, 1.1 s, 2 refused`.

    Why is told of those whose fault was not injected.
    """
    parts = [f"{record.clients_aggregated}/{record.clients_selected} clients"]
    if record.train_loss is not None:
        parts.append(f"train loss {record.train_loss:.4f}")
    parts += [f"{name} {value:.4f}" for name, value in (record.eval or {}).items()]
    if record.clients_eval:
        parts.append(describe_clients(record.clients_eval))
    parts.append(f"{record.seconds.total:.1f} s")
    parts += [told for told in (describe_losses(record),) if told]
    parts += _describe_failures(unexplained(record))
    return f"{record.stage} {record.round}: " + ", ".join(parts)


def _describe_failures(failures: Sequence[Failure]) -> list[str]:
    """Returns e.g. `clients 3, 7 failed: no reply within 60 s`; a reason is told once."""
    alike: dict[tuple[str, str], list[int]] = {}
    for failure in failures:
        alike.setdefault((failure.status, failure.reason), []).append(failure.client_id)
    told = [f"{_clients(ids)} {how}: {why}" for (how, why), ids in list(alike.items())[:_SHOWN]]
    left = sum(len(ids) for ids in list(alike.values())[_SHOWN:])
    return [*told, f"and {left} more"] if left else told


def _clients(ids: Sequence[int]) -> str:
    if len(ids) == 1:
        return f"client {ids[0]}"
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"clients {', '.join(map(str, ids[:_SHOWN]))}{more}"


def describe_losses(record: RoundRecord) -> str:
    """Returns e.g. `1 failed, 2 late`, empty where nobody was lost: all who are not aggregated."""
    lost = Counter(failure.status for failure in record.failures)
    lost |= {"late": record.clients_late, "discarded": record.clients_discarded}
    return ", ".join(f"{count} {status}" for status, count in sorted(lost.items()) if count)


def unexplained(record: RoundRecord) -> list[Failure]:
    """Returns the failures of clients that suffered no injected fault."""
    injected = {fault.client_id for fault in record.injected}
    return [failure for failure in record.failures if failure.client_id not in injected]


def describe_clients(told: Mapping[str, float]) -> str:
    """Returns e.g. `on 50 clients accuracy 0.90 (p10 0.75)`, or their loss where that is all.

    >>> describe_clients({"clients": 8.0, "loss": -0.5, "loss_p10": -0.7})
    'on 8 clients loss -0.5000'
    """
    shown = [
        f"{name.removesuffix('_p10')} {told[name.removesuffix('_p10')]:.4f} (p10 {told[name]:.4f})"
        for name in told
        if name.endswith("_p10") and not name.startswith("loss")
    ]
    shown = shown or [f"loss {told['loss']:.4f}"]
    return f"on {told['clients']:.0f} clients {', '.join(shown)}"
