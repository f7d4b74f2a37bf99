"""Replies that are made as they are asked for, and still are a list to whoever holds them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar, overload

_T = TypeVar("_T")


class Replies(Sequence[_T], Generic[_T]):
    """A sequence over an iterator; an item is made when somebody first looks at it.

    Items are kept only while this object is held. `for reply in grid.send_and_receive(messages)`
    holds nothing but the iterator, so each reply is gone after its turn; `replies = ...` is a list.

    >>> replies = Replies(iter("abc"))
    >>> [*replies], replies[-1], len(replies)
    (['a', 'b', 'c'], 'c', 3)
    """

    def __init__(self, source: Iterator[_T]) -> None:
        self._source = source
        self._kept: list[_T] = []

    def __iter__(self) -> Iterator[_T]:
        """Walks from the first item on, as often as you like."""
        return _walk(weakref.ref(self), self._source)

    def __bool__(self) -> bool:
        """Whether there is any item."""
        return bool(self.kept(1))

    def __len__(self) -> int:
        """How many items there are, which means making them all."""
        return len(self.kept())

    @overload
    def __getitem__(self, place: int) -> _T: ...
    @overload
    def __getitem__(self, place: slice) -> list[_T]: ...
    def __getitem__(self, place: int | slice) -> _T | list[_T]:
        """Returns an item, or a list of items."""
        return self.kept()[place]

    def kept(self, count: int | None = None) -> list[_T]:
        """Makes items until there are `count`, or all, and returns those there are."""
        missing = None if count is None else max(0, count - len(self._kept))
        self._kept.extend(itertools.islice(self._source, missing))
        return self._kept


def _walk(owner: weakref.ref[Replies[_T]], source: Iterator[_T]) -> Iterator[_T]:
    for place in itertools.count():
        replies = owner()
        if replies is None:
            yield from source
            return
        kept = replies.kept(place + 1)
        if len(kept) <= place:
            return
        item = kept[place]
        del replies, kept  # nothing here may hold them while the caller is at work
        yield item
