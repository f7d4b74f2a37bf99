"""How fast a file is on this machine, and what it takes to begin."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.edge.card import Card, find_card
from deploy.edge.runtimes import Facts, is_installed, open_model, runtimes_for
from shared_models.errors import ExportError

_EXAMPLES = 20


@dataclass(frozen=True)
class Timing:
    """Milliseconds per example, batch 1, after a warm-up; examples a second; MB at the most.

    `open_ms` is what opening took in the runtime's process, the import of the runtime included;
    `cold_start_ms` is from nothing, without even a process, to the first answer. Memory is that of
    the process: Python, numpy, the runtime and the model.
    """

    runtime: str
    version: str
    threads: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    per_second: float
    peak_mb: float
    open_ms: float
    cold_start_ms: float


@dataclass(frozen=True)
class Failed:
    """Why a file was not timed in a runtime, on so many threads."""

    runtime: str
    threads: int
    reason: str


def bench(
    path: Path, runs: int, threads: tuple[int, ...], runtime: str = ""
) -> tuple[list[Timing], list[Failed]]:
    """Times a file in a runtime, or in all that this machine has, on so many threads each.

    Raises `InputError` for a wrong path or name, `ExportError` when the file cannot be run at all.
    """
    card = find_card(path)
    names = [runtime] if runtime else [name for name in runtimes_for(path) if is_installed(name)]
    timings, failed = [], []
    for name in names or [""]:  # none: opening says what to install
        for count in threads:
            try:
                timings.append(_time(path, name, count, runs, card))
            except ExportError as error:
                failed.append(Failed(name, count, str(error)))
    if not timings:
        raise ExportError(failed[0].reason)
    return timings, failed


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    return {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2] for line in told.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()


def _time(path: Path, runtime: str, threads: int, runs: int, card: Card | None) -> Timing:
    began = time.perf_counter()
    with open_model(path, runtime, threads) as model:
        examples = _examples(card, model.facts)
        model.predict(examples[:1])
        cold = (time.perf_counter() - began) * 1e3
        times, peak = model.time(examples, runs)
        p50, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
        return Timing(
            runtime=runtime,
            version=model.facts.version,
            threads=threads,
            runs=runs,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            per_second=1e3 * runs / float(times.sum()),
            peak_mb=peak,
            open_ms=model.facts.open_ms,
            cold_start_ms=cold,
        )


def _examples(card: Card | None, facts: Facts) -> NDArray[Any]:
    """Returns made-up input of the right shape: how long it takes does not depend on values."""
    rng = np.random.default_rng(0)
    shape = card.input.shape if card else facts.shape[1:]
    dtype = card.input.dtype if card else facts.dtype
    if dtype == "int64":
        return rng.integers(0, card.input.tokens if card else 1, (_EXAMPLES, *shape))
    return rng.standard_normal((_EXAMPLES, *shape), np.float32)
