"""How many messages go to an actor at once: as many as take it a moment."""

from __future__ import annotations

from dataclasses import dataclass, field

# A group is to last this long: much longer than a call of an actor costs, about a millisecond.
_MOMENT_S = 0.03
_MOMENT_BYTES = 4 * 2**20
_MOST = 64


@dataclass
class Pace:
    """What a message of each type took last: seconds, and bytes of the reply."""

    _taken: dict[str, tuple[float, int]] = field(default_factory=dict)

    def note(self, kind: str, seconds: float, size: int) -> None:
        """Remembers what one message of a type took."""
        self._taken[kind] = (seconds, size)

    def group(self, kind: str, left: int, workers: int) -> int:
        """Returns how many messages to send at once of `left` that are left for `workers`.

        One while nothing is known; and never so many that a worker would stand idle at the end.

        >>> pace = Pace()
        >>> pace.group("train", 100, 2)
        1
        >>> pace.note("train", 0.003, 100)
        >>> pace.group("train", 100, 2), pace.group("train", 6, 2)
        (10, 1)
        """
        if kind not in self._taken:
            return 1
        seconds, size = self._taken[kind]
        fit = min(_MOMENT_S / max(seconds, 1e-9), _MOMENT_BYTES / max(size, 1), _MOST)
        return max(1, min(int(fit), left // (2 * workers)))
