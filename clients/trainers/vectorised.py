"""All clients of a block in one step: weights stacked, the step mapped over them.

Any objective: what the plain loop calls once per client, `torch.func.vmap` calls for all at once.
Clients of unequal size take each step with those that have a batch of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clients.trainers.together import Member, together
from clients.training import (
    BlockTrainer,
    ClientData,
    Training,
    accumulate,
    as_batch,
    batch_indices,
    empty_sums,
    noise_source,
    order_of,
    refused,
)
from shared_models.arrays import Arrays
from shared_models.checks import check_metrics, check_update
from shared_models.errors import UpdateError
from shared_models.gradients import by_transform
from shared_models.models.scanned import scanned
from shared_models.objectives import Batch, Noise, Objective
from shared_models.partial import Partial, Row

_MOST_SHAPES = 64
Nest: TypeAlias = Any  # dicts and tuples of tensors, each stacked along its first axis


def vectorised(training: Training) -> BlockTrainer:
    """Returns the trainer; it fits every task."""
    make_model = training.task.make_model
    mappable = replace(training.task, make_model=lambda: scanned(make_model()))
    objective = replace(training, task=mappable).objective(by_transform)
    step = torch.func.vmap(objective.step)
    whole = _compiled(step) if training.compiled else step

    @torch.no_grad()
    def train_bucket(server: Arrays, members: Sequence[Member]) -> Partial:
        members = sorted(members, key=lambda member: len(member.data.y))
        data = [as_batch(member.data, training) for member in members]
        local = _begin(objective, server, data)
        plans = [_steps(training, objective, m, own) for m, own in zip(members, data, strict=True)]
        totals: list[dict[str, Tensor]] = [{} for _ in members]
        for number in range(max(map(len, plans))):
            for places in _of_one_size(plans, number):
                batches = [plans[place][number] for place in places]
                # Only usual shapes are compiled, by a rule: which came first must not matter.
                usual = len(places) == len(members) and len(batches[0][0].y) == training.batch_size
                local, metrics = _step(whole if usual else step, local, places, batches)
                _add(totals, metrics, places, len(batches[0][0].y))
        sums, _, told = torch.func.vmap(objective.end)(local)
        means = _means(training, members, totals, told)
        rows = []
        for place, (member, mean) in enumerate(zip(members, means, strict=True)):
            fault = _fault(training, objective, server, (_at(sums, place), mean))
            rows.append(_row(member, mean, fault))
        return _sum(training, objective, server, sums, rows)

    return together(training, objective, _kind_of, train_bucket)


def _compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the step compiled for each number of clients, or an error: never silently eager."""
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, _MOST_SHAPES)
    settings.fail_on_recompile_limit_hit = True
    compiled: Callable[..., Any] = torch.compile(step, dynamic=False)
    return compiled


def _kind_of(data: ClientData) -> Hashable:
    return data.x.shape[1:], data.x.dtype.str


def _begin(objective: Objective, server: Arrays, data: Sequence[Batch]) -> Nest:
    """Begins clients of one size together; `data` is sorted by size."""
    begin = torch.func.vmap(objective.begin, in_dims=(None, None, 0))
    begun = [
        begin(server, {}, _stack(list(group))) for _, group in groupby(data, lambda own: len(own.y))
    ]
    if len(begun) == 1:
        return begun[0]
    return pytree.tree_map(lambda *parts: torch.cat(parts), *begun)


def _steps(
    training: Training, objective: Objective, member: Member, data: Batch
) -> list[tuple[Batch, Noise]]:
    """Returns one client's batches with their noise, in the order of the plain loop."""
    draw = noise_source(training, objective, member.key)
    order = order_of(training, member.key)
    batches = [
        Batch(data.x[index], data.y[index])
        for index in batch_indices(len(data.y), training.epochs, training.batch_size, order)
    ]
    return [(batch, draw(batch)) for batch in batches]


def _of_one_size(
    plans: Sequence[Sequence[tuple[Batch, Noise]]], number: int
) -> Iterable[tuple[int, ...]]:
    """Yields the places of clients whose batch of this number has the same size."""
    sizes: dict[int, list[int]] = {}
    for place, plan in enumerate(plans):
        if number < len(plan):
            sizes.setdefault(len(plan[number][0].y), []).append(place)
    return map(tuple, sizes.values())


def _step(
    step: Callable[..., tuple[Nest, Any]],
    local: Nest,
    places: Sequence[int],
    batches: Sequence[tuple[Batch, Noise]],
) -> tuple[Nest, dict[str, Tensor]]:
    batch, noise = _stack(batches)
    if len(places) == len(pytree.tree_leaves(local)[0]):
        return step(local, batch, noise)
    index = torch.tensor(places, device=batch.y.device)
    chosen = pytree.tree_map(lambda tensor: tensor[index], local)
    changed, metrics = step(chosen, batch, noise)
    return pytree.tree_map(lambda t, new: t.index_copy(0, index, new), local, changed), metrics


def _stack(parts: Sequence[Any]) -> Any:
    return pytree.tree_map(lambda *tensors: torch.stack(tensors), *parts)


def _at(sums: Nest, place: int) -> Nest:
    return pytree.tree_map(lambda tensor: tensor[place], sums)


def _add(
    totals: Sequence[dict[str, Tensor]],
    metrics: dict[str, Tensor],
    places: Sequence[int],
    examples: int,
) -> None:
    for name, values in metrics.items():
        for place, value in zip(places, values.detach().double() * examples, strict=True):
            totals[place][name] = totals[place].get(name, 0.0) + value


def _means(
    training: Training,
    members: Sequence[Member],
    totals: Sequence[dict[str, Tensor]],
    told: dict[str, Tensor],
) -> Iterable[dict[str, float]]:
    for place, (member, values) in enumerate(zip(members, totals, strict=True)):
        seen = training.epochs * len(member.data.y)
        means = {name: float(value) / seen for name, value in values.items()}
        yield {**means, **{name: float(value[place]) for name, value in told.items()}}


def _fault(
    training: Training,
    objective: Objective,
    server: Arrays,
    of: tuple[dict[str, Arrays], dict[str, float]],
) -> str:
    """Returns why a client's update and metrics may not be summed, or nothing."""
    update, metrics = of
    try:
        check_update(update, objective.sums, server, training.roles, training.max_update_norm)
        check_metrics(metrics)
    except UpdateError as error:
        return str(error)
    return ""


def _row(member: Member, metrics: dict[str, float], fault: str) -> Row:
    examples = len(member.data.y)
    if fault:
        return refused(member.client_id, examples, fault)
    return Row(member.client_id, examples, metrics)


def _sum(
    training: Training,
    objective: Objective,
    server: Arrays,
    sums: dict[str, Arrays],
    rows: Sequence[Row],
) -> Partial:
    """Adds up the good clients, one after another: who was in which block must not matter."""
    totals = empty_sums(objective, training, server)
    for place, row in enumerate(rows):
        if row.status == "ok":
            for name, spec in objective.sums.items():
                own = {key: tensor[place] for key, tensor in sums[name].items()}
                totals[name] = accumulate(totals[name], own, spec.weigh(row.examples))
    return Partial(totals, tuple(rows))
