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

from clients.gathering import Gathering
from clients.trainers.together import together
from clients.training import (
    BlockTrainer,
    ClientData,
    Member,
    Trained,
    Training,
    Unfit,
    as_batch,
    batch_indices,
    noise_source,
    order_of,
)
from shared_models.errors import InputError
from shared_models.gradients import by_transform
from shared_models.messages import BlockRequest
from shared_models.models.scanned import scanned
from shared_models.objectives import Batch, Broadcast, Noise, Objective
from shared_models.partial import Partial

_MOST_SHAPES = 64
Nest: TypeAlias = Any  # dicts and tuples of tensors, each stacked along its first axis


def vectorised(training: Training) -> BlockTrainer:
    """Returns the trainer; compiled only where the learning rate stays.

    Raises `Unfit` otherwise: a compiled step has it inside, and would be compiled in every round.
    So it does for recurrent layers that `scanned` has no form of.
    """
    if training.compiled and not training.one_rate:
        raise Unfit("a compiled step has the learning rate inside, which local_schedule changes")
    make_model = training.task.make_model
    try:
        scanned(make_model())
    except InputError as error:
        raise Unfit(str(error)) from None
    mappable = replace(training.task, make_model=lambda: scanned(make_model()))
    objective = replace(training, task=mappable).objective(by_transform)
    step = torch.func.vmap(objective.step)
    whole = _compiled(step) if training.compiled else step

    @torch.no_grad()
    def train_bucket(
        request: BlockRequest, server: Broadcast, members: Sequence[Member]
    ) -> Partial:
        members = sorted(members, key=lambda member: len(member.data.y))
        data = [as_batch(member.data, training) for member in members]
        local = _begin(objective, server, members, data)
        plans = [_steps(training, objective, m, own) for m, own in zip(members, data, strict=True)]
        totals: list[dict[str, Tensor]] = [{} for _ in members]
        for number in range(max(map(len, plans))):
            for places in _of_one_size(plans, number):
                batches = [plans[place][number] for place in places]
                # Only usual shapes are compiled, by a rule: which came first must not matter.
                usual = len(places) == len(members) and len(batches[0][0].y) == training.batch_size
                local, metrics = _step(whole if usual else step, local, places, batches)
                _add(totals, metrics, places, len(batches[0][0].y))
        sums, states, told = torch.func.vmap(objective.end)(local)
        gathering = Gathering(training, objective, server, request)
        means = _means(training, members, totals, told)
        # One after another: who was in which block must not matter.
        return gathering.partial(
            [
                gathering.take(member, Trained(_at(sums, place), mean, _at(states, place)))
                for place, (member, mean) in enumerate(zip(members, means, strict=True))
            ]
        )

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


def _begin(
    objective: Objective, server: Broadcast, members: Sequence[Member], data: Sequence[Batch]
) -> Nest:
    """Begins clients of one size together; `data` is sorted by size."""
    begin = torch.func.vmap(objective.begin, in_dims=(None, 0, 0))
    pairs = [(member.state, own) for member, own in zip(members, data, strict=True)]
    begun = [
        begin(server, *_stack(list(group))) for _, group in groupby(pairs, lambda p: len(p[1].y))
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
