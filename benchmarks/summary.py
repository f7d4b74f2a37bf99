"""From single results to medians, ratios and tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.simulation import Result
from benchmarks.text import markdown, three_figures

OURS = ("wildflower", "wildflower-inline")  # the first that was measured is "ours"


@dataclass(frozen=True)
class Targets:
    """What is promised: `floor` is ours against theirs, at most; the others theirs against ours."""

    floor: float
    pfl: float
    flower: float


TARGETS = MappingProxyType(
    {
        "W1": Targets(floor=0.45, pfl=3.3, flower=30),
        "W1-100": Targets(floor=0.5, pfl=2.4, flower=18),
        "W2": Targets(floor=0.6, pfl=1.7, flower=5.5),
        "W3": Targets(floor=0.7, pfl=1.35, flower=1.6),
        "W4": Targets(floor=0.8, pfl=1.35, flower=3.8),
    }
)


@dataclass(frozen=True)
class Median:
    """The medians over the repeats of one system on one workload."""

    workload: str
    system: str
    runs: int
    rounds: int
    seconds_per_round: float
    clients_per_second: float
    startup_s: float
    peak_pss_mb: float | None
    accuracy: float
    loss: float


def medians(results: Sequence[Result]) -> list[Median]:
    """Returns one median for every workload and system, in the order in which they came."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.workload, result.system), []).append(result)
    return [_median(group) for group in groups.values()]


def _median(runs: Sequence[Result]) -> Median:
    first = runs[0]
    seconds = statistics.median(run.seconds_per_round for run in runs)
    memory = [run.peak_pss_mb for run in runs if run.peak_pss_mb is not None]
    return Median(
        workload=first.workload,
        system=first.system,
        runs=len(runs),
        rounds=first.rounds,
        seconds_per_round=seconds,
        clients_per_second=round(first.cohort / seconds, 2),
        startup_s=statistics.median(run.startup_s for run in runs),
        peak_pss_mb=statistics.median(memory) if memory else None,
        accuracy=statistics.median(run.accuracy for run in runs),
        loss=statistics.median(run.loss for run in runs),
    )


def seconds_of(rows: Iterable[Median], workload: str) -> dict[str, float]:
    """Returns seconds per round by system."""
    return {row.system: row.seconds_per_round for row in rows if row.workload == workload}


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns how ours compares, by peer: `floor` ours/theirs, all others theirs/ours.

    Empty where ours was not measured; a peer that was not measured has no entry.
    """
    ours = next((seconds[name] for name in OURS if name in seconds), None)
    peers = {name: own for name, own in seconds.items() if name not in OURS}
    if ours is None:
        return {}
    return {name: ours / own if name == "floor" else own / ours for name, own in peers.items()}


def speed_table(rows: Sequence[Median]) -> str:
    """Returns seconds per round and ratios beside their targets, as Markdown."""
    systems = list(dict.fromkeys(row.system for row in rows))
    head = ["seconds per round", *systems, "ours / floor", "pfl / ours", "flower / ours"]
    body = []
    for workload in dict.fromkeys(row.workload for row in rows):
        seconds = seconds_of(rows, workload)
        own = [f"{seconds[name]:.3f}" if name in seconds else "" for name in systems]
        body.append([workload, *own, *_told_ratios(workload, ratios(seconds))])
    return markdown(head, body)


def _told_ratios(workload: str, found: Mapping[str, float]) -> list[str]:
    """Returns e.g. `0.44 (at most 0.45)`; a target that is missed is marked."""
    told = []
    for peer, word in (("floor", "at most"), ("pfl", "at least"), ("flower", "at least")):
        target = getattr(TARGETS.get(workload), peer, None)
        if peer not in found:
            told.append("")
        elif target is None:
            told.append(f"{found[peer]:.2f}")
        else:
            met = found[peer] <= target if peer == "floor" else found[peer] >= target
            told.append(f"{found[peer]:.2f} ({word} {target:g}{'' if met else ', missed'})")
    return told


def detail_table(rows: Sequence[Median]) -> str:
    """Returns what else was measured, as Markdown."""
    head = [
        "workload",
        "system",
        "clients/s",
        "start s",
        "peak PSS MB",
        "accuracy",
        "loss",
        "rounds",
    ]
    body = [
        [
            row.workload,
            row.system,
            three_figures(row.clients_per_second),
            f"{row.startup_s:.1f}",
            "" if row.peak_pss_mb is None else f"{row.peak_pss_mb:.0f}",
            f"{row.accuracy:.4f}",
            f"{row.loss:.4f}",
            str(row.rounds),
        ]
        for row in rows
    ]
    return markdown(head, body)
