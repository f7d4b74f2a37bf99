"""Which clients a node hosts, as a person writes it: `7`, `0-99`, `3,7,20-29`."""

from __future__ import annotations

import re

from shared_models.errors import InputError, one_line

MOST_CLIENTS = 100_000


def parse_hosts(text: str) -> tuple[int, ...]:
    """Returns the sorted ids; `InputError` when they are none, too many, or one is named twice.

    >>> parse_hosts("3,7,20-22")
    (3, 7, 20, 21, 22)
    """
    told = one_line(text)
    ids: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if not found:
            raise InputError(
                f"--hosts {told}: {one_line(part)!r} is not a client id or a range like 0-99"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise InputError(f"--hosts {told}: {part!r} is not a range from small to large")
        if len(ids) + last - first >= MOST_CLIENTS:
            raise InputError(f"--hosts {told}: a node hosts at most {MOST_CLIENTS} clients")
        ids.extend(range(first, last + 1))
    if len(set(ids)) < len(ids):
        raise InputError(f"--hosts {told}: names a client twice")
    return tuple(sorted(ids))
