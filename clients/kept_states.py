"""What a device's clients keep from round to round: on the device, a file a run, nowhere else.

The server knows which of a client's states counted, and says from which round's each client
begins; what came after that (an answer that was too late, an attempt below the quorum, a round
that is repeated after a resume) is dropped. States are written in one transaction, before the
answer is sent. So many rounds' are kept as the server may go back to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from clients.host import Host
from clients.hosting import Keeping
from shared_models.arrays import size_bytes
from shared_models.client_states import PAGE_BYTES, ClientStates
from shared_models.errors import CheckpointError, UpdateError
from shared_models.messages import BlockRequest, Kept
from shared_models.partial import ClientState, Partial

MOST_RUNS = 3
"""Of how many runs the states are kept, those that were trained last."""

_SUFFIX = ".sqlite"
_MB = 2**20


def with_kept(host: Host, request: BlockRequest) -> BlockRequest:
    """Returns the request with what its clients have kept here.

    Raises `CheckpointError` that names a client whose state is not here any more: begun anew it
    would count twice in what the server knows of all clients.
    """
    if request.kept is None:
        return request
    with _opened(host, request.kept) as states:
        found = {
            client_id: _state(states, request.stage, client_id, number)
            for client_id, number in request.kept.since.items()
            if number > 0
        }
    return replace(request, states=found)


def without_kept(host: Host, request: BlockRequest, partial: Partial) -> Partial:
    """Keeps here what the clients of a trained block keep; returns the partial without it.

    Raises `CheckpointError` when there is no room for it, OSError when the disk is full.
    """
    if request.kept is None:
        if host.keeping is not None and partial.states:
            raise UpdateError("the server wants what clients keep: that does not leave this device")
        return partial
    with _opened(host, request.kept) as states:
        _check_room(host, partial)
        states.drop_after(request.stage, request.kept.since)
        states.prune_clients(request.stage, _oldest(host, request), request.client_ids)
        states.save(request.stage, request.round, partial.states)
        states.commit()
    _prune_runs(_keeping(host), _file(host, request.kept))
    return replace(partial, states={})


@contextlib.contextmanager
def _opened(host: Host, kept: Kept) -> Iterator[ClientStates]:
    file = _file(host, kept)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stages = [stage.name for stage in host.config.learning_stages]
    with ClientStates(file, stages) as states:
        yield states


def _file(host: Host, kept: Kept) -> Path:
    # The id is the server's word: whatever it is, it names a file in this folder.
    return Path(_keeping(host).folder) / f"{quote(kept.run, safe='')}{_SUFFIX}"


def _keeping(host: Host) -> Keeping:
    if host.keeping is None:
        raise UpdateError("this node has no place for what clients keep")
    return host.keeping


def _state(states: ClientStates, stage: str, client_id: int, number: int) -> ClientState:
    if states.newest(stage, number, [client_id]) != {client_id: number}:
        raise CheckpointError(
            f"client {client_id}: what it kept after round {number} of stage {stage!r} is not on "
            f"its device any more (its --state was lost, or {MOST_RUNS} newer runs took its "
            "place): it takes no part in the rest of the stage"
        )
    return states.load(stage, number, [client_id])[client_id]


def _oldest(host: Host, request: BlockRequest) -> int:
    """Returns after which round at the earliest the server may begin again.

    While it asks for a round it may still be writing the checkpoint of the one before; and all but
    the oldest of those that it keeps may turn out to be damaged.
    """
    return request.round - 1 - host.config.keep_checkpoints


def _check_room(host: Host, partial: Partial) -> None:
    """Raises `CheckpointError` when all clients' states would take more than there is for them."""
    own = [sum(map(size_bytes, state.values())) for state in partial.states.values()]
    pages = -(-max(own, default=0) // PAGE_BYTES)
    versions, clients = host.config.keep_checkpoints + 2, len(host.client_ids)
    needed, room = clients * versions * pages * PAGE_BYTES / _MB, _keeping(host).room_mb
    if needed > room:
        raise CheckpointError(
            f"what {clients} clients keep takes {needed:.0f} MB on their device, which has "
            f"{room} MB for it: half of its --max-disk-mb"
        )


def _prune_runs(keeping: Keeping, own: Path) -> None:
    """Removes the states of runs that are not among the newest, or for which there is no room."""
    files = {path: path.stat() for path in own.parent.glob(f"*{_SUFFIX}")}
    newest = sorted(files, key=lambda path: (path != own, -files[path].st_mtime))
    taken = 0
    for place, path in enumerate(newest):
        taken += files[path].st_size
        if path != own and (place >= MOST_RUNS or taken > keeping.room_mb * _MB):
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
            path.unlink()
