"""Whether a run fits this machine's disk and memory: asked before it starts, refused in words."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from shared_models.client_states import FILE_NAME, LARGEST_STATE_BYTES, PAGE_BYTES
from shared_models.errors import InputError


@dataclass(frozen=True)
class Demand:
    """What a stage asks of the server's machine.

    `cohort` is how many clients a round trains, `state_bytes` what one client keeps (0: nothing),
    `update_bytes` what it sends; `keeps_updates` whether the aggregator needs them all at once,
    `keeps_best` whether the stage may end with an earlier round, whose states are then kept, too.
    """

    stage: str
    rounds: int
    clients: int
    cohort: int
    state_bytes: int
    update_bytes: int
    aggregator: str
    keeps_updates: bool
    keeps_best: bool = False


@dataclass(frozen=True)
class Room:
    """What the machine has for a run: free bytes where `folder` is, and in memory."""

    folder: Path
    disk_bytes: int
    memory_bytes: int


def room_at(folder: Path) -> Room:
    """Returns the room for a run in `folder`, which need not exist yet.

    Client states that are there already count as room: a run that is resumed writes into them.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    states = folder / FILE_NAME
    own = states.stat().st_size if states.is_file() else 0
    return Room(folder, shutil.disk_usage(there).free + own, psutil.virtual_memory().available)


def check_budget(demand: Demand, keep_checkpoints: int, room: Room) -> None:
    """Raises `InputError` when a stage's client states or updates cannot fit.

    With n clients, m a round, r rounds, k checkpoints and states of s bytes, the disk holds at most

        min(n + (k + 1) * m, r * m) * (1.1 * s + min(s, page) + 1000) bytes:

    a version for each client at the oldest checkpoint, and those of the rounds since: of the k - 1
    other checkpoints, of the one that is being written, and of the round under way; never more than
    were written. The rest is what SQLite, names and checksums add. Updates of u bytes take

        2 * m * u bytes

    of memory where the aggregator keeps them: once as they came, once joined. Stages are checked
    one by one, since the states of one go when the checkpoints of the next are kept.
    """
    _check_disk(demand, keep_checkpoints, room)
    _check_memory(demand, room)


def states_bytes(demand: Demand, keep_checkpoints: int) -> int:
    """Returns how large the file of a stage's client states becomes at most, in bytes."""
    if demand.state_bytes == 0:
        return 0
    cohort = min(demand.cohort, demand.clients)
    versions = min(
        (1 + demand.keeps_best) * demand.clients + (keep_checkpoints + 1) * cohort,
        demand.rounds * cohort,
    )
    each = demand.state_bytes * 11 // 10 + min(demand.state_bytes, PAGE_BYTES) + 1000
    return versions * each


def updates_bytes(demand: Demand) -> int:
    """Returns how much memory a round's updates take at most, 0 where they are summed at once."""
    return 2 * demand.cohort * demand.update_bytes if demand.keeps_updates else 0


def _check_disk(demand: Demand, keep_checkpoints: int, room: Room) -> None:
    if demand.state_bytes > LARGEST_STATE_BYTES:
        raise InputError(
            f"stage {demand.stage!r}: a client would keep {in_units(demand.state_bytes)} from "
            f"round to round, the most is {in_units(LARGEST_STATE_BYTES)}; keep a smaller part "
            "of the model personal, or choose another objective"
        )
    needed = states_bytes(demand, keep_checkpoints)
    if needed > room.disk_bytes:
        raise InputError(
            f"stage {demand.stage!r}: {demand.clients} clients keep "
            f"{in_units(demand.state_bytes)} each from round to round: with {keep_checkpoints} "
            f"checkpoints up to {in_units(needed)}, there are {in_units(room.disk_bytes)} free "
            f"for {room.folder}; choose an --out on a larger disk, or use fewer clients, a "
            "smaller keep_checkpoints or another objective"
        )


def _check_memory(demand: Demand, room: Room) -> None:
    needed = updates_bytes(demand)
    if needed > room.memory_bytes:
        raise InputError(
            f"stage {demand.stage!r}: aggregator {demand.aggregator!r} keeps all {demand.cohort} "
            f"updates of {in_units(demand.update_bytes)} at once and joins them: "
            f"{in_units(needed)}, there are {in_units(room.memory_bytes)}; use a smaller "
            "clients_per_round or another aggregator"
        )


def in_units(count: float) -> str:
    """Returns a number of bytes for people, with two digits or three.

    >>> [in_units(n) for n in (999, 6_653_480, 66_534_800_000, 999_999)]
    ['999 B', '6.7 MB', '67 GB', '1.0 MB']
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.0f} TB" if count >= 9.95 else f"{count:.1f} TB"
