"""Blocks whose clients are trained at the same time: what such trainers share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeAlias

import torch

from clients.gathering import Gathering
from clients.training import (
    BlockTrainer,
    ClientData,
    DataOf,
    Member,
    Training,
    broadcast_of,
    member_of,
    merge,
    refused,
    unfit,
)
from shared_models.messages import BlockRequest
from shared_models.objectives import Broadcast, Objective
from shared_models.partial import Partial, Row

BucketTrainer: TypeAlias = Callable[[BlockRequest, Broadcast, Sequence[Member]], Partial]


def together(
    training: Training,
    objective: Objective,
    bucket_of: Callable[[ClientData], Hashable],
    train_bucket: BucketTrainer,
    most: int | None = None,
) -> BlockTrainer:
    """Returns the trainer that runs `train_bucket` on a block's clients of one kind at a time.

    At most `most` of them at a time, where a processor's cache holds no more. `train_bucket` checks
    every client before it is summed. When it raises, its clients are trained one at a time, so that
    only the culprit is lost.
    """

    def train_block(request: BlockRequest, data_of: DataOf) -> Partial:
        server = broadcast_of(request, training)

        def train(bucket: Sequence[Member]) -> Partial:
            return train_bucket(request, server, bucket)

        members, rows = _load(request, objective, server, data_of)
        nobody = Gathering(training, objective, server, request).partial(rows)
        parts = [
            part for bucket in _buckets(members, bucket_of, most) for part in _train(bucket, train)
        ]
        return _merged(request, [nobody, *parts])

    return train_block


def _merged(request: BlockRequest, parts: Sequence[Partial]) -> Partial:
    """Returns one partial, its rows and singles in the order of the request."""
    first, *others = parts
    sums = {
        name: functools.reduce(merge, (part.sums[name] for part in others if part.sums), total)
        for name, total in first.sums.items()
    }
    rows = [row for part in parts for row in part.rows]
    place = {client_id: k for k, client_id in enumerate(request.client_ids)}
    good = [place[row.client_id] for row in rows if row.status == "ok"]
    order = torch.argsort(torch.tensor(good, dtype=torch.int64))
    singles = {
        name: {
            key: torch.cat([part.singles[name][key] for part in parts if part.singles])[order]
            for key in arrays
        }
        for name, arrays in first.singles.items()
    }
    states = {client_id: state for part in parts for client_id, state in part.states.items()}
    rows.sort(key=lambda row: place[row.client_id])
    return Partial(sums, tuple(rows), singles, states, request.about)


def _load(
    request: BlockRequest, objective: Objective, server: Broadcast, data_of: DataOf
) -> tuple[list[Member], list[Row]]:
    """Returns the clients whose examples could be read, and rows for the others."""
    members: list[Member] = []
    rows: list[Row] = []
    for client_id in request.client_ids:
        try:
            data = data_of(client_id)
        except Exception as error:  # one client's fault must not take its block down
            rows.append(unfit(client_id, 0, error))
            continue
        if len(data.y):
            members.append(member_of(request, objective, server, client_id, data))
        else:
            rows.append(refused(client_id, 0, "the client has no examples"))
    return members, rows


def _buckets(
    members: Iterable[Member], bucket_of: Callable[[ClientData], Hashable], most: int | None
) -> Iterator[list[Member]]:
    buckets: dict[Hashable, list[Member]] = {}
    for member in members:
        buckets.setdefault(bucket_of(member.data), []).append(member)
    for bucket in buckets.values():
        size = most or len(bucket)
        yield from (bucket[start : start + size] for start in range(0, len(bucket), size))


def _train(
    bucket: Sequence[Member], train: Callable[[Sequence[Member]], Partial]
) -> Iterable[Partial]:
    try:
        return [train(bucket)]
    except Exception as error:
        if len(bucket) > 1:
            return [part for member in bucket for part in _train([member], train)]
        (member,) = bucket
        return [Partial({}, (unfit(member.client_id, len(member.data.y), error),))]
