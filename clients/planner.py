"""Which trainer is fastest here: measured on a few clients before round 1, then thrown away.

Nothing that a trial computes is kept: randomness is keyed, so a trial cannot change what follows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from clients.host import Host
from clients.kernels.compiled import find_compiler
from clients.process import get_ready
from clients.trainers import TRAINERS
from clients.training import BlockTrainer, ClientData, Unfit
from shared_models.config import Plan, TrainStage
from shared_models.errors import InputError
from shared_models.gradients import by_autograd
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
# Of recurrent layers every time step is compiled, 0.7 s each on an idle core.
_MOST_UNROLLED = 20
_BUDGET_S = 60.0
_OVER = "the time for measuring was over"
# What a block can save its clients: the calls that one client's trial makes, not their arithmetic.
_CALLS_S = 0.03


class Found(NamedTuple):
    """Seconds per client of each trainer that was measured, and why others were not."""

    seconds: Mapping[str, float]
    left_out: Mapping[str, str]


_NOTHING = Found({}, {})


@dataclass(frozen=True)
class Settled:
    """A settled plan, and what was found about the trainers."""

    plan: Plan
    seconds: Mapping[str, float]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Returns the plan, what was measured, and what was left out, in a line.

        >>> import math
        >>> reason = "its loss is odd"
        >>> seconds, left_out = {"reused": 0.0034}, {"fused": reason, "low_rank": reason}
        >>> Settled(Plan(trainer="reused", block_size=25), seconds, left_out).describe()
        'reused, 25 clients a block (ms a client: reused 3.4; not fused, low_rank: its loss is odd)'
        >>> Settled(Plan(trainer="loop", block_size=9), {"loop": math.nan}).describe()
        'loop, 9 clients a block (nothing was measured: it alone fits)'
        """
        told = sorted(self.ms_a_client.items(), key=lambda item: item[1])
        times = ", ".join(f"{name} {took:.3g}" for name, took in told)
        first = f"ms a client: {times}" if times else "nothing was measured: it alone fits"
        notes = [first, *_by_reason(self.left_out)] if self.seconds else []
        size = self.plan.clients_per_block
        return f"{self.plan.trainer}, {size} clients a block" + (
            f" ({'; '.join(notes)})" if notes else ""
        )

    @property
    def ms_a_client(self) -> dict[str, float]:
        """Milliseconds a client of each trainer that was measured."""
        return {n: round(s * 1000, 3) for n, s in self.seconds.items() if math.isfinite(s)}

    def facts(self) -> dict[str, Mapping[str, float] | Mapping[str, str]]:
        """Returns what a manifest says: milliseconds a client, and why others were not measured."""
        return {"ms_a_client": self.ms_a_client, "left_out": self.left_out}


def _by_reason(left_out: Mapping[str, str]) -> Iterator[str]:
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, own in left_out.items() if own == reason]
        yield f"not {', '.join(names)}: {reason}"


class Bench(NamedTuple):
    """Whose trainers are measured, for which stage, and until when (`time.perf_counter`)."""

    host: Host
    stage: TrainStage
    until: float

    @property
    def is_over(self) -> bool:
        """Whether no further trial may begin."""
        return time.perf_counter() > self.until


def settle(host: Host, budget_s: float = _BUDGET_S) -> Settled:
    """Returns the plan of the host's config with what is open filled in, by measuring.

    When `budget_s` is over no trial is begun, but for the first trainer's.
    """
    config = host.config
    stage = max(config.learning_stages, key=lambda s: s.rounds * s.clients_per_round)
    plan, found = config.plan, Found({}, {})
    if plan.trainer == "auto":
        found = measure(Bench(host, stage, time.perf_counter() + budget_s))
        fastest = min(found.seconds, key=found.seconds.__getitem__)
        name, compiled = fastest.removesuffix("+"), fastest.endswith("+")
        plan = plan.model_copy(update={"trainer": name, "compile": compiled})
    cohort = min(max(s.clients_per_round for s in config.learning_stages), len(host.client_ids))
    return Settled(plan.settled(plan.trainer, block_size(plan, cohort)), *found)


def block_size(plan: Plan, cohort: int) -> int:
    """Returns a size that gives every core of this machine as many blocks as any other."""
    most = _MOST_ON_GPU if plan.device != "cpu" else _MOST.get(plan.trainer, _MOST_ONE_BY_ONE)
    workers = cores() if plan.device == "cpu" else 1
    return math.ceil(cohort / (workers * math.ceil(cohort / (workers * most))))


def measure(bench: Bench) -> Found:
    """Returns seconds per client of each trainer that fits; a compiled one's name ends in `+`.

    The loop is tried only where `reused` does not fit, which does the same with fewer copies.
    """
    get_ready()  # as in the workers
    if bench.host.config.plan.compile:
        found = _measure_compiled(bench, ("fused", "vectorised"))
        if not found.seconds:
            raise InputError("plan.compile: nothing can be compiled for this task on this machine")
        return found
    first = _measure_each(bench, ["reused"])
    others = [name for name in TRAINERS if name not in ("loop", "reused")]
    plain = _measure_each(bench, others if first.seconds else ["loop", *others], first)
    if not plain.seconds:
        return Found({"loop": math.nan}, plain.left_out)
    compiled = _measure_compiled(bench, _worth_compiling(bench, plain))
    # Whose plain form fits is not left out.
    return Found({**plain.seconds, **compiled.seconds}, plain.left_out)


def _worth_compiling(bench: Bench, plain: Found) -> list[str]:
    """Returns the trainers that fit and whose compiled form may save more than compiling takes."""
    host, stage = bench.host, bench.stage
    clients = stage.rounds * min(stage.clients_per_round, len(host.client_ids))
    long = clients * min(plain.seconds.values()) > 10 * _COMPILE_S
    names = ["fused"]  # a second, once
    if long and _unrolled(host, stage) <= _MOST_UNROLLED:
        names.append("vectorised")
    return [name for name in names if name in plain.seconds and not bench.is_over]


def _unrolled(host: Host, stage: TrainStage) -> int:
    """Returns how many steps of recurrent layers there are in one pass of a stage's model."""
    task = host.task_of(stage.name)
    parts = task.make_model().modules()
    layers = sum(part.num_layers for part in parts if isinstance(part, torch.nn.RNNBase))
    return layers * task.input.shape[0]


def _measure_compiled(bench: Bench, names: Sequence[str]) -> Found:
    if find_compiler() is None:
        return Found({}, dict.fromkeys(names, "there is no compiler"))
    seconds, left_out = _measure_each(bench, names, compiled=True)
    return Found({f"{name}+": took for name, took in seconds.items()}, left_out)


def _measure_each(
    bench: Bench, names: Sequence[str], known: Found = _NOTHING, *, compiled: bool = False
) -> Found:
    """Returns what is `known`, and what is found about these trainers."""
    seconds, left_out = dict(known.seconds), dict(known.left_out)
    for name in names:
        best = min(seconds.values(), default=math.inf)
        if bench.is_over and best < math.inf:
            left_out[name] = _OVER
            continue
        try:
            trainer = _made(bench.host, bench.stage, name, compiled=compiled)
            # A compiled form is tried in full: where its plain one is known, so is what it costs.
            seconds[name] = _seconds(trainer, _trial(bench, name), math.inf if compiled else best)
        except Unfit as error:
            left_out[name] = str(error)
    return Found(seconds, left_out)


def _made(host: Host, stage: TrainStage, name: str, *, compiled: bool) -> BlockTrainer:
    """Returns a trainer of `stage`; `Unfit` when it cannot train a stage, or would not pay."""
    make, made = TRAINERS[name], {}
    for own in host.config.learning_stages:
        made[own.name] = make(replace(host.training(own.name), compiled=compiled))
    rows = stage.local_epochs * int(host.partition.sizes().max())
    if name == "low_rank" and rows > _MOST_LOW_RANK_ROWS:
        raise Unfit(f"it pays up to {_MOST_LOW_RANK_ROWS} examples a client, here are {rows}")
    return made[stage.name]


@dataclass(frozen=True)
class _Trial:
    """What a candidate is tried on; `share` is how much of its clients' work that is."""

    request: BlockRequest
    data_of: Callable[[int], ClientData]
    share: float
    bench: Bench


def _trial(bench: Bench, name: str) -> _Trial:
    host, stage, _ = bench
    count = {"low_rank": 25, "vectorised": _TRIAL_CLIENTS}.get(name, 2)
    count = min(count, len(host.client_ids), host.config.plan.block_size or count)
    clients = sample_clients(host, count, stage)
    params = host.task_of(stage.name).build(0)
    extras = host.training(stage.name).objective(by_autograd).server.init(params)
    request = BlockRequest(stage.name, 0, 0, 0, clients, params, extras=extras)
    data_for = host.data_for(stage.name)
    if name == "low_rank":  # its cost grows faster than its examples: tried on whole clients
        return _Trial(request, data_for, 1.0, bench)
    most = _TRIAL_BATCHES * stage.batch_size

    def data_of(client_id: int) -> ClientData:
        whole = data_for(client_id)
        return ClientData(whole.x[:most], whole.y[:most])

    sizes = [len(data_for(client_id).y) for client_id in clients]
    return _Trial(request, data_of, sum(min(n, most) for n in sizes) / sum(sizes), bench)


def sample_clients(host: Host, count: int, stage: TrainStage) -> tuple[int, ...]:
    """Returns some clients that have examples for a stage, drawn: the first ones may be larger."""
    ids = host.taking_part(stage)
    rng = generator(host.config.seed, "plan")
    chosen = rng.choice(len(ids), size=min(count, len(ids)), replace=False)
    return tuple(ids[place] for place in sorted(chosen.tolist()))


def _seconds(trainer: BlockTrainer, trial: _Trial, best: float = math.inf) -> float:
    """Returns seconds per client, the better of two runs; `Unfit` when the trainer fails.

    A trainer that is hopelessly slower than the best on one client is not tried on more, and none
    is when the time for measuring is over.
    """
    single = replace(trial.request, client_ids=trial.request.client_ids[:1])
    alone = _best_of(1, trainer, trial, single)
    if (alone - best) * trial.share > _CALLS_S or trial.bench.is_over:
        return alone
    return _best_of(2, trainer, trial, trial.request)


def _best_of(runs: int, trainer: BlockTrainer, trial: _Trial, request: BlockRequest) -> float:
    """Returns the least seconds of so many runs, of fewer when the time is over.

    Not of the first, which makes what a process makes once: buffers, kernels for the shapes.
    """
    took = [_time(trainer, trial, request)]
    while len(took) <= runs and not trial.bench.is_over:
        took.append(_time(trainer, trial, request))
    return min(took[1:] or took)


def _time(trainer: BlockTrainer, trial: _Trial, request: BlockRequest) -> float:
    began = time.perf_counter()
    partial = trainer(request, trial.data_of)
    took = time.perf_counter() - began
    if any(row.status == "failed" for row in partial.rows):
        raise Unfit("it fails on this data")
    return took / len(request.client_ids) / trial.share
