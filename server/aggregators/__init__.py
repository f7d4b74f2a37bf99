"""How the updates of a round become one: folded as they arrive, memory O(model)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared_models.arrays import Arrays
from shared_models.partial import Partial


def _always(_: int) -> None:
    return None


@dataclass(frozen=True)
class Aggregator:
    """`finish(add(add(init(), partial), partial))` is the aggregate of each named sum.

    `add` may write into the aggregate that it is given, never into a partial.

    With `needs_singles` its partials hold every client's update (`Partial.singles`), no sums.

    `fault(count)` is why it cannot do its work on so many updates, or None: such a round is below
    its quorum.
    """

    init: Callable[[], Any]
    add: Callable[[Any, Partial], Any]
    finish: Callable[[Any], Mapping[str, Arrays]]
    needs_singles: bool = False
    fault: Callable[[int], str | None] = _always
