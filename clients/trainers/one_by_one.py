"""A block trained one client after another: what the loop and its faster relatives share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from clients.kernels.layout import Columns
from clients.training import (
    BlockTrainer,
    ClientData,
    DataOf,
    Key,
    Training,
    accumulate,
    empty_sums,
    failed,
    key_of,
    refused,
)
from shared_models.arrays import Arrays, in_dtype, to_device
from shared_models.checks import check_metrics, check_update
from shared_models.errors import UpdateError
from shared_models.messages import BlockRequest
from shared_models.objectives import Objective, Sums
from shared_models.partial import Partial, Row, Sum

ClientTrainer: TypeAlias = Callable[[Arrays, Key, ClientData], tuple[Sums, Mapping[str, float]]]

_AS_THEY_ARE = Columns()


def one_by_one(
    training: Training,
    objective: Objective,
    train_client: ClientTrainer,
    columns: Columns = _AS_THEY_ARE,
) -> BlockTrainer:
    """Returns the trainer that runs `train_client` for every client of a block, in order.

    `train_client` gets and returns arrays whose `columns` are in the order of memory.

    A client whose training raises is `failed`, one whose update does not pass `check_update` is
    `refused`; neither is summed, both are named in the rows. Sums are in the plan's dtype.
    """

    def train_and_check(
        request: BlockRequest, server: Arrays, client_id: int, data_of: DataOf
    ) -> tuple[Sums | None, Row]:
        examples = 0
        try:
            data = data_of(client_id)
            examples = len(data.y)
            if examples == 0:
                raise UpdateError("the client has no examples")
            update, metrics = train_client(server, key_of(request, client_id), data)
            specs, norm = objective.sums, training.max_update_norm
            check_update(update, specs, server, training.roles, norm)
            check_metrics(metrics)
        except UpdateError as error:
            return None, refused(client_id, examples, str(error))
        except Exception as error:  # one client's fault must not take its block down
            return None, failed(client_id, examples, error)
        return update, Row(client_id, examples, metrics)

    def train_block(request: BlockRequest, data_of: DataOf) -> Partial:
        server = to_device(in_dtype(request.params, training.dtype), training.device)
        server = columns.reordered(server)
        sums = empty_sums(objective, training, server)
        rows = []
        for client_id in request.client_ids:
            update, row = train_and_check(request, server, client_id, data_of)
            rows.append(row)
            if update is not None:
                for name, spec in objective.sums.items():
                    weight = spec.weigh(row.examples)
                    sums[name] = accumulate(sums[name], update[name], weight)
        delta = sums["delta"]
        sums["delta"] = Sum(columns.restored(delta.arrays), delta.weight)
        return Partial(sums, tuple(rows))

    return train_block
