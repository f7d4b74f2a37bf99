"""The calibrate stage: clients say in which ranges the values inside the final model lie.

Full int8 needs them, and the server has no data. What it writes down, `calibration.json`, is a
function of the weights, the seed and the clients' data, whoever measured it and in whatever order;
only noise, where it is asked for, is drawn anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from server.events import Notice
from server.patience import one_by_one_when_bad
from server.population import Population
from server.range_noise import Noise, noised
from server.sampling import count_of, sample_cohort
from server.stage import Run
from shared_models.arrays import Arrays
from shared_models.config import CalibrateStage, Config
from shared_models.errors import CheckpointError, RoundError, UpdateError, one_line
from shared_models.files import sha256_of, write_json
from shared_models.messages import BlockFailure, BlockRequest, Reply, Send
from shared_models.partial import Partial, Row, bad_rows
from shared_models.ranges import (
    BINS,
    COUNTS,
    RANGES,
    Range,
    Ranges,
    as_ranges,
    check_ranges,
    clipped,
    join,
    merge,
    never_negative,
    traced,
    values_of,
)
from shared_models.task import Task

Check: TypeAlias = Callable[[BlockRequest, Partial], None]


@dataclass(frozen=True)
class Answers:
    """What clients told: a row each, the ranges of those that are `ok`, and all their counts."""

    rows: tuple[Row, ...]
    ranges: tuple[Ranges, ...]
    counts: Arrays


def calibrate(run: Run, stage: CalibrateStage, population: Population, params: Arrays) -> None:
    """Asks clients and writes `calibration.json`; raises `RoundError` below the quorum.

    A file that is about these very weights is kept: with noise, a second one would tell more.
    """
    weights = sha256_of(run.folder.model_file)
    if (known := load_calibration(run)) is not None and known["weights_sha256"] == weights:
        return
    requests = make_requests(run.config, stage, population, params)
    answers = ask(requests, run.transport.calibrate, answer_check(stage, run.task, population))
    require_quorum(stage, answers.rows)
    told = {"weights_sha256": weights, **describe(stage, answers, run.task)}
    write_json(run.folder.calibration_file, told)
    run.observe(Notice(f"{stage.name}: {told['text']}"))


def load_calibration(run: Run) -> dict[str, Any] | None:
    """Returns what was written down, None if nothing was yet; raises `CheckpointError`."""
    path = run.folder.calibration_file
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if missing := {"weights_sha256", "ranges", "text"} - set(found):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; remove it to ask clients again") from None


def make_requests(
    config: Config, stage: CalibrateStage, population: Population, params: Arrays
) -> list[BlockRequest]:
    """Returns what asks the stage's clients, one request a block."""
    key = (stage.name, 1, 0)
    asked = sample_cohort(population.client_ids, stage.clients, config.seed, key, "calibrate")
    blocks = population.blocks(asked, config.plan.clients_per_block)
    return [
        BlockRequest(*key, place, client_ids, params, node)
        for place, (node, client_ids) in enumerate(blocks)
    ]


def ask(requests: Sequence[BlockRequest], send: Send, check: Check) -> Answers:
    """Returns what these clients told; a block that holds a bad answer is asked again, one by one.

    What was told is let go of as it comes in, but for two numbers a value and client.
    """
    rows: list[Row] = []
    ranges: list[Ranges] = []
    counts: Arrays = {}
    for request, reply in zip(requests, one_by_one_when_bad(send, requests, check), strict=True):
        rows += _rows(request, reply)
        if isinstance(reply, Partial):
            told = reply.singles.get(RANGES, {})
            good = sum(row.status == "ok" for row in reply.rows)
            ranges += [as_ranges({name: own[k] for name, own in told.items()}) for k in range(good)]
            added = {name: own.sum(0) for name, own in reply.singles.get(COUNTS, {}).items()}
            counts = join([counts, added])
    return Answers(tuple(rows), tuple(ranges), counts)


def _rows(request: BlockRequest, reply: Reply) -> tuple[Row, ...]:
    if isinstance(reply, BlockFailure):
        return bad_rows(request.client_ids, reply.status, one_line(reply.reason))
    return tuple(replace(row, reason=one_line(row.reason)) for row in reply.rows)


def answer_check(stage: CalibrateStage, task: Task, population: Population) -> Check:
    """Returns what raises `UpdateError` unless a block's answer is fit to be merged.

    Raises `InputError` for a model whose values have no names.
    """
    values = values_of(traced(task.model()), torch.from_numpy(task.sample(1)))
    sizes = {name: value.numel() for name, value in values.items()}
    return _Check(stage, sizes, population)


@dataclass(frozen=True)
class _Check:
    stage: CalibrateStage
    sizes: Mapping[str, int]
    """How many numbers a value is, for one example."""
    population: Population

    def __call__(self, request: BlockRequest, partial: Partial) -> None:
        if tuple(row.client_id for row in partial.rows) != request.client_ids:
            raise UpdateError("the reply is about other clients")
        good = [row for row in partial.rows if row.status == "ok"]
        for row in good:
            if row.metrics or row.examples != self.population.examples_of[row.client_id]:
                raise UpdateError(f"client {row.client_id} claims {row.examples} examples")
        if partial.sums or partial.states or (partial.singles and not good):
            raise UpdateError("the reply holds more than ranges")
        if good:
            self._check_arrays(good, partial.singles)

    def _check_arrays(self, good: Sequence[Row], told: Mapping[str, Arrays]) -> None:
        kinds = {RANGES, COUNTS} if self.stage.method == "percentile" else {RANGES}
        if set(told) != kinds:
            raise UpdateError(f"the reply holds {sorted(told)}, expected {sorted(kinds)}")
        _require(told[RANGES], tuple(self.sizes), (len(good), 2), torch.float32)
        for place, row in enumerate(good):
            own = {name: array[place] for name, array in told[RANGES].items()}
            try:
                check_ranges(own, self.stage.max_range)
            except UpdateError as error:
                raise UpdateError(f"client {row.client_id}: {error}") from None
        if COUNTS in kinds:
            _require(told[COUNTS], tuple(self.sizes), (len(good), BINS), torch.int64)
            self._check_counts(good, told[COUNTS])

    def _check_counts(self, good: Sequence[Row], told: Arrays) -> None:
        for name, array in told.items():
            sums = array.double().sum(1).tolist()  # what overflows int64 is no small number here
            for place, row in enumerate(good):
                due = self.sizes[name] * min(row.examples, self.stage.examples_per_client)
                if int(array[place].min()) < 0 or sums[place] != due:
                    raise UpdateError(
                        f"client {row.client_id}: value {name}: its counts are not those of {due} "
                        "numbers"
                    )


def _require(
    told: Arrays, names: Sequence[str], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    if set(told) != set(names):
        odd = sorted(set(told) ^ set(names))
        raise UpdateError(f"ranges of other values than the model has: {odd[:3]}")
    for name, array in told.items():
        if tuple(array.shape) != shape or array.dtype != dtype:
            raise UpdateError(
                f"value {name}: {array.dtype} {tuple(array.shape)}, expected {dtype} {shape}"
            )


def require_quorum(stage: CalibrateStage, rows: Sequence[Row]) -> None:
    """Raises `RoundError` when fewer clients told their ranges than have to."""
    good = sum(row.status == "ok" for row in rows)
    quorum = max(1, count_of(stage.min_fraction, len(rows)))
    if good < quorum:
        first = next(row for row in rows if row.status != "ok")
        raise RoundError(
            f"stage {stage.name!r}: {good or 'none'} of {len(rows)} clients told their ranges, the "
            f"quorum is {quorum}; client {first.client_id}: {first.reason}; "
            "mend the cause and go on with --resume"
        )


def describe(stage: CalibrateStage, answers: Answers, task: Task) -> dict[str, Any]:
    """Returns what `calibration.json` tells: the merged ranges and how they came about."""
    good = len(answers.ranges)
    failures = [row for row in answers.rows if row.status != "ok"]
    noise = _noise(stage)
    merged = _merged(stage, answers, noise)
    for name in never_negative(traced(task.model())) & merged.keys():
        merged[name] = Range(0.0, max(merged[name].high, 0.0))
    return {
        "text": _text(stage, good),
        "stage": stage.name,
        "method": stage.method,
        "percentile": stage.settled_percentile,
        "examples_per_client": stage.examples_per_client,
        "clients_asked": len(answers.rows),
        "clients_answered": good,
        "failures": [
            {"client_id": row.client_id, "status": row.status, "reason": row.reason}
            for row in failures
        ],
        "noise": None if noise is None else {"mechanism": "gaussian", **noise.__dict__},
        "ranges": {name: [own.low, own.high] for name, own in merged.items()},
    }


def _merged(stage: CalibrateStage, answers: Answers, noise: Noise | None) -> dict[str, Range]:
    if noise is not None:
        # Seeded by the system: with the run's seed, which is no secret, noise could be taken off.
        return noised(answers.ranges, noise, np.random.default_rng())
    whole = merge(answers.ranges)
    percentile = stage.settled_percentile
    if percentile is None:
        return whole
    counts = {name: own.numpy() for name, own in answers.counts.items()}
    return {name: clipped(own, counts[name], percentile) for name, own in whole.items()}


def _noise(stage: CalibrateStage) -> Noise | None:
    if stage.noise_epsilon is None:
        return None
    return Noise(stage.noise_epsilon, stage.noise_delta, stage.noise_floor, stage.noise_ceiling)


def _text(stage: CalibrateStage, clients: int) -> str:
    how: str = stage.method
    if stage.settled_percentile is not None:
        how += f" {stage.settled_percentile:g}"
    if stage.noise_epsilon is not None:
        how += f", noise of epsilon {stage.noise_epsilon:g}, delta {stage.noise_delta:g}"
    return f"federated, {clients} clients, {how}"
