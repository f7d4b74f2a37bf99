"""Blocks whose clients are trained at the same time: what such trainers share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from clients.training import (
    BlockTrainer,
    ClientData,
    DataOf,
    Key,
    Training,
    empty_sums,
    failed,
    key_of,
    merge,
    refused,
)
from shared_models.arrays import Arrays, in_dtype, to_device
from shared_models.messages import BlockRequest
from shared_models.objectives import Objective
from shared_models.partial import Partial, Row


class Member(NamedTuple):
    """One client of a block: its id, what keys its randomness, its examples."""

    client_id: int
    key: Key
    data: ClientData


BucketTrainer: TypeAlias = Callable[[Arrays, Sequence[Member]], Partial]


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
        server = to_device(in_dtype(request.params, training.dtype), training.device)
        sums = empty_sums(objective, training, server)
        members, rows = _load(request, data_of)
        for bucket in _buckets(members, bucket_of, most):
            for partial in _train(server, bucket, train_bucket):
                rows += partial.rows
                for name, part in partial.sums.items():
                    sums[name] = merge(sums[name], part)
        place = {client_id: k for k, client_id in enumerate(request.client_ids)}
        return Partial(sums, tuple(sorted(rows, key=lambda row: place[row.client_id])))

    return train_block


def _load(request: BlockRequest, data_of: DataOf) -> tuple[list[Member], list[Row]]:
    """Returns the clients whose examples could be read, and rows for the others."""
    members: list[Member] = []
    rows: list[Row] = []
    for client_id in request.client_ids:
        try:
            data = data_of(client_id)
        except Exception as error:  # one client's fault must not take its block down
            rows.append(failed(client_id, 0, error))
            continue
        if len(data.y):
            members.append(Member(client_id, key_of(request, client_id), data))
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
    server: Arrays, bucket: Sequence[Member], train_bucket: BucketTrainer
) -> Iterable[Partial]:
    try:
        return [train_bucket(server, bucket)]
    except Exception as error:
        if len(bucket) > 1:
            return [part for member in bucket for part in _train(server, [member], train_bucket)]
        (member,) = bucket
        return [Partial({}, (failed(member.client_id, len(member.data.y), error),))]
