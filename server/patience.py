"""A block that does not come back is done again client by client: only the culprit is lost."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from shared_models.arrays import add
from shared_models.messages import BlockFailure, BlockRequest, Reply, Send
from shared_models.partial import Partial, Row, Sum, bad_rows


def one_by_one_when_lost(send: Send) -> Send:
    """Returns a `send` that gives the clients of a lost block a second chance, each in its own."""

    def patient(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        asked = list(requests)
        for request, reply in zip(asked, send(asked), strict=True):
            if isinstance(reply, BlockFailure) and len(request.client_ids) > 1:
                alone = [replace(request, client_ids=(k,)) for k in request.client_ids]
                yield merged(alone, list(send(alone)))
            else:
                yield reply

    return patient


def merged(requests: Sequence[BlockRequest], replies: Sequence[Reply]) -> Reply:
    """Returns one reply for clients that were trained apart; those that were lost have a row."""
    partials = [reply for reply in replies if isinstance(reply, Partial)]
    if not partials:
        return replies[0]
    rows = (row for pair in zip(requests, replies, strict=True) for row in _rows(*pair))
    sums = {
        name: functools.reduce(_plus, (partial.sums[name] for partial in partials))
        for name in partials[0].sums
    }
    return Partial(sums, tuple(rows))


def _rows(request: BlockRequest, reply: Reply) -> tuple[Row, ...]:
    if isinstance(reply, Partial):
        return reply.rows
    return bad_rows(request.client_ids, "failed", reply.reason)


def _plus(left: Sum, right: Sum) -> Sum:
    return Sum(add(left.arrays, right.arrays), left.weight + right.weight)
