"""A block that comes back bad, or not at all, is done again client by client.

So only the culprit is lost. What comes out is checked: what is no partial that may be added is a
`BlockFailure` with the reason.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from shared_models.arrays import Arrays, add
from shared_models.errors import UpdateError
from shared_models.messages import BlockFailure, BlockRequest, Reply, Send
from shared_models.partial import Partial, Row, Sum, bad_rows


def one_by_one_when_bad(
    send: Send, requests: Iterable[BlockRequest], check: Callable[[BlockRequest, Partial], None]
) -> Iterator[Reply]:
    """Yields a checked reply per request; `check` raises `UpdateError` when a partial is bad.

    Requests are taken no sooner than `send` takes them.
    """
    asked: deque[BlockRequest] = deque()

    def noted() -> Iterator[BlockRequest]:
        for request in requests:
            asked.append(request)
            yield request

    for reply in send(noted()):
        request = asked.popleft()
        found = _checked(request, reply, check)
        if isinstance(found, BlockFailure) and len(request.client_ids) > 1:
            alone = [_alone(request, client_id) for client_id in request.client_ids]
            pairs = zip(alone, send(alone), strict=True)
            again = merged(alone, [_checked(own, reply, check) for own, reply in pairs])
            # Trained apart, clients add up in another order: that is a clock's doing, too.
            found = replace(again, timed_out=again.timed_out or found.timed_out)
        yield found


def _alone(request: BlockRequest, client_id: int) -> BlockRequest:
    own = {k: state for k, state in request.states.items() if k == client_id}
    return replace(request, client_ids=(client_id,), states=own)


def _checked(
    request: BlockRequest, reply: Reply, check: Callable[[BlockRequest, Partial], None]
) -> Reply:
    if isinstance(reply, BlockFailure):
        return reply
    try:
        check(request, reply)
    except UpdateError as error:
        return BlockFailure(str(error), "refused")
    return reply


def merged(requests: Sequence[BlockRequest], replies: Sequence[Reply]) -> Partial:
    """Returns one reply for clients that were trained apart; those that were lost have a row."""
    rows = tuple(row for pair in zip(requests, replies, strict=True) for row in _rows(*pair))
    partials = [reply for reply in replies if isinstance(reply, Partial)]
    late = any(reply.timed_out for reply in replies)
    if not partials:
        return Partial({}, rows, about=requests[0].about, timed_out=late)
    first = partials[0]
    sums = {
        name: functools.reduce(_plus, (partial.sums[name] for partial in partials))
        for name in first.sums
    }
    singles = {
        name: _joined([partial.singles[name] for partial in partials]) for name in first.singles
    }
    states = {client_id: own for partial in partials for client_id, own in partial.states.items()}
    return Partial(sums, rows, singles, states, first.about, late)


def _rows(request: BlockRequest, reply: Reply) -> tuple[Row, ...]:
    if isinstance(reply, Partial):
        return reply.rows
    return bad_rows(request.client_ids, reply.status, reply.reason)


def _plus(left: Sum, right: Sum) -> Sum:
    return Sum(add(left.arrays, right.arrays), left.weight + right.weight)


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
