"""A block trained one client after another: what the loop and its faster relatives share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from clients.gathering import Gathering
from clients.kernels.layout import Columns
from clients.training import (
    BlockTrainer,
    ClientData,
    DataOf,
    Member,
    Trained,
    Training,
    broadcast_of,
    member_of,
    row_of,
)
from shared_models.messages import BlockRequest
from shared_models.objectives import Broadcast, Objective
from shared_models.partial import Partial, Row

ClientTrainer: TypeAlias = Callable[[Broadcast, Member], Trained]

_AS_THEY_ARE = Columns()


def one_by_one(
    training: Training,
    objective: Objective,
    train_client: ClientTrainer,
    columns: Columns = _AS_THEY_ARE,
) -> BlockTrainer:
    """Returns the trainer that runs `train_client` for every client of a block, in order.

    `train_client` gets and returns arrays whose `columns` are in the order of memory.

    A client whose training raises is `failed`, one whose update is unfit is `refused`; neither is
    summed, both are named in the rows. Sums are in the plan's dtype.
    """

    def train_block(request: BlockRequest, data_of: DataOf) -> Partial:
        server = broadcast_of(request, training)
        server = server._replace(params=columns.reordered(server.params))
        gathering = Gathering(training, objective, server, request, columns)

        def train(client_id: int) -> Row:
            def work(data: ClientData) -> Row:
                member = member_of(request, objective, server, client_id, data)
                return gathering.take(member, train_client(server, member))

            return row_of(client_id, data_of, work)

        return gathering.partial([train(client_id) for client_id in request.client_ids])

    return train_block
