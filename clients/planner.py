"""Which trainer is fastest here: measured on a few clients before round 1, then thrown away.

Nothing that a trial computes is kept: randomness is keyed, so a trial cannot change what follows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from clients.host import Host
from clients.kernels.compiled import find_compiler
from clients.trainers import TRAINERS
from clients.training import BlockTrainer, ClientData, Unfit
from shared_models.config import Plan, TrainStage
from shared_models.errors import InputError
from shared_models.machine import cores
from shared_models.messages import BlockRequest
from shared_models.randomness import generator

# Clients that are worth a block: as many as gain from each other, or as share a message's cost.
_MOST = {"low_rank": 100, "vectorised": 16}
_MOST_ON_GPU = 256
_MOST_ONE_BY_ONE = 32
_TRIAL_CLIENTS = 8
_TRIAL_BATCHES = 3
_MOST_LOW_RANK_ROWS = 512
_COMPILE_S = 20.0
# What a block can save its clients: the calls that one client's trial makes, not their arithmetic.
_CALLS_S = 0.03


@dataclass(frozen=True)
class Settled:
    """A settled plan, and the seconds per client that each candidate took."""

    plan: Plan
    seconds: Mapping[str, float]

    def describe(self) -> str:
        """Returns e.g. `fused, 25 clients a block (ms a client: fused 2.1, reused 3.4)`."""
        told = sorted(self.seconds.items(), key=lambda item: item[1])
        times = ", ".join(f"{name} {seconds * 1000:.3g}" for name, seconds in told)
        size = self.plan.clients_per_block
        return f"{self.plan.trainer}, {size} clients a block" + (
            f" (ms a client: {times})" if times else ""
        )


def settle(host: Host) -> Settled:
    """Returns the plan of the host's config with what is open filled in, by measuring."""
    config = host.config
    stage = max(config.learning_stages, key=lambda s: s.rounds * s.clients_per_round)
    plan, seconds = config.plan, {}
    if plan.trainer == "auto":
        seconds = measure(host, stage)
        fastest = min(seconds, key=seconds.__getitem__)
        name, compiled = fastest.removesuffix("+"), fastest.endswith("+")
        plan = plan.model_copy(update={"trainer": name, "compile": compiled})
    cohort = min(max(s.clients_per_round for s in config.learning_stages), len(host.client_ids))
    return Settled(plan.settled(block_size=block_size(plan, cohort)), seconds)


def block_size(plan: Plan, cohort: int) -> int:
    """Returns a size that gives every core of this machine as many blocks as any other."""
    most = _MOST_ON_GPU if plan.device != "cpu" else _MOST.get(plan.trainer, _MOST_ONE_BY_ONE)
    workers = cores() if plan.device == "cpu" else 1
    return math.ceil(cohort / (workers * math.ceil(cohort / (workers * most))))


def measure(host: Host, stage: TrainStage) -> dict[str, float]:
    """Returns seconds per client of each trainer that fits; a compiled one's name ends in `+`."""
    torch.set_num_threads(1)  # as in the workers
    times: dict[str, float] = {}
    if host.config.plan.compile:
        return _measure_compiled(host, stage, ("fused", "vectorised"))
    for name, trainer in _candidates(host, stage):
        best = min(times.values(), default=math.inf)
        seconds = _seconds(trainer, _trial(host, stage, name), best)
        times |= {name: seconds} if seconds is not None else {}
    if not times:
        return {"loop": math.nan}
    clients = stage.rounds * min(stage.clients_per_round, len(host.client_ids))
    compiling = ["fused"]  # a second, once
    if clients * min(times.values()) > 10 * _COMPILE_S:
        compiling.append("vectorised")
    known = [name for name in compiling if name in times]
    return times | (_measure_compiled(host, stage, known) if known else {})


def _measure_compiled(host: Host, stage: TrainStage, names: Iterable[str]) -> dict[str, float]:
    """Returns seconds per client of the compiled forms that fit; `InputError` if asked in vain."""
    times: dict[str, float] = {}
    for name in names:
        trainer = _made(host, stage, name, compiled=True)
        seconds = trainer and _seconds(trainer, _trial(host, stage, name))
        times |= {f"{name}+": seconds} if seconds else {}
    if host.config.plan.compile and not times:
        raise InputError("plan.compile: nothing can be compiled for this task on this machine")
    return times


def _candidates(host: Host, stage: TrainStage) -> Iterator[tuple[str, BlockTrainer]]:
    """Yields the trainers that can train every stage, but for the loop, which is never faster."""
    rows = stage.local_epochs * int(host.partition.sizes().max())
    for name in TRAINERS:
        trainer = _made(host, stage, name, compiled=False)
        if trainer is not None and (name != "low_rank" or rows <= _MOST_LOW_RANK_ROWS):
            yield name, trainer


def _made(host: Host, stage: TrainStage, name: str, *, compiled: bool) -> BlockTrainer | None:
    """Returns a trainer of `stage`; None when it cannot train one of the stages."""
    if name == "loop" or (compiled and find_compiler() is None):
        return None
    make, made = TRAINERS[name], {}
    for own in host.config.learning_stages:
        try:
            made[own.name] = make(replace(host.training(own.name), compiled=compiled))
        except Unfit:
            return None
    return made[stage.name]


@dataclass(frozen=True)
class _Trial:
    """What a candidate is tried on; `share` is how much of its clients' work that is."""

    request: BlockRequest
    data_of: Callable[[int], ClientData]
    share: float


def _trial(host: Host, stage: TrainStage, name: str) -> _Trial:
    count = {"low_rank": 25, "vectorised": _TRIAL_CLIENTS}.get(name, 2)
    count = min(count, len(host.client_ids), host.config.plan.block_size or count)
    clients = sample_clients(host, count)
    request = BlockRequest(stage.name, 0, 0, 0, clients, host.task.build(0))
    if name == "low_rank":  # its cost grows faster than its examples: tried on whole clients
        return _Trial(request, host.data_of, 1.0)
    most = _TRIAL_BATCHES * stage.batch_size

    def data_of(client_id: int) -> ClientData:
        whole = host.data_of(client_id)
        return ClientData(whole.x[:most], whole.y[:most])

    sizes = host.examples(clients)
    return _Trial(request, data_of, sum(min(n, most) for n in sizes) / sum(sizes))


def sample_clients(host: Host, count: int) -> tuple[int, ...]:
    """Returns some clients, drawn: the first ones may be larger or smaller than the others."""
    rng = generator(host.config.seed, "plan")
    chosen = rng.choice(len(host.client_ids), size=count, replace=False)
    return tuple(host.client_ids[place] for place in sorted(chosen.tolist()))


def _seconds(trainer: BlockTrainer, trial: _Trial, best: float = math.inf) -> float | None:
    """Returns seconds per client, the better of two runs; None when the trainer fails.

    A trainer that is hopelessly slower than the best on one client is not tried on more.
    """
    single = replace(trial.request, client_ids=trial.request.client_ids[:1])
    try:
        # The first run makes what a process makes once: buffers, kernels generated for the shapes.
        _, alone = _time(trainer, trial, single), _time(trainer, trial, single)
        if (alone - best) * trial.share > _CALLS_S:
            return alone
        _, *runs = (_time(trainer, trial, trial.request) for _ in range(3))
    except Unfit:
        return None
    return min(runs)


def _time(trainer: BlockTrainer, trial: _Trial, request: BlockRequest) -> float:
    began = time.perf_counter()
    partial = trainer(request, trial.data_of)
    took = time.perf_counter() - began
    if any(row.status == "failed" for row in partial.rows):
        raise Unfit("it fails on this data")
    return took / len(request.client_ids) / trial.share
