"""What clients keep from round to round, in one SQLite file a run.

A client's state after round r is its newest version of round r or before. So a round's checkpoint
finds the states that belong to it, however many rounds have been begun since, and a version goes
only when no checkpoint that is kept needs it:

    rewind     drops what is newer than the checkpoint that a round begins from
    load       reads the versions of that checkpoint, while
    save       writes those of the round, all in one transaction, which
    commit     makes durable: the checkpoint of the round is written after that
    prune      drops what is older than the oldest checkpoint needs, and its stage's best round

A node that keeps its own clients' states sees only the rounds that those take part in, and is told
which of them counted: `drop_after` and `prune_clients` are about single clients.

A process that is killed has lost at most a transaction, and what it committed without a checkpoint
is dropped when the round is begun again. Everything runs in the thread that opened the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load as deserialize

from shared_models.arrays import Arrays, serialize
from shared_models.errors import CheckpointError
from shared_models.partial import ClientState

FILE_NAME = "client_states.sqlite"
PAGE_BYTES = 16384
LARGEST_STATE_BYTES = 999_000_000
"""SQLite takes rows of a billion bytes."""

_VERSION = 1
_PATIENCE_S = 60.0  # somebody may be looking into the file
_ANEW = "put back a copy of the whole run folder, or start the run anew"

# A journal that is deleted, not a write-ahead log: states are large, a log writes each byte twice,
# grows as large as a round, and leaves two more files beside this one; pages that were free or are
# new need no journal. EXTRA also syncs the folder when the journal is gone: without it, a power cut
# could bring it back, and with it the states from before a checkpoint that is already there.
# Temporary files would go where nobody looks for them and perhaps nobody may write. Some builds of
# SQLite overwrite with zeros what they delete, which doubles the work.
_SETTINGS = (
    f"page_size = {PAGE_BYTES}",
    "journal_mode = DELETE",
    "synchronous = EXTRA",
    "cache_size = -8000",
    "temp_store = MEMORY",
    "secure_delete = OFF",
)
_SCHEMA = (
    """CREATE TABLE states (id INTEGER PRIMARY KEY, stage TEXT NOT NULL, round INTEGER NOT NULL,
    client_id INTEGER NOT NULL, sha256 BLOB NOT NULL, content BLOB NOT NULL)""",
    "CREATE UNIQUE INDEX versions ON states (stage, client_id, round)",
    "CREATE INDEX rounds ON states (stage, round)",
    """CREATE TABLE saved (stage TEXT NOT NULL, round INTEGER NOT NULL,
    PRIMARY KEY (stage, round)) WITHOUT ROWID""",
    f"PRAGMA user_version = {_VERSION}",
)
_LOAD = (
    "SELECT round, sha256, content FROM states"
    " WHERE stage = ? AND client_id = ? AND round <= ? ORDER BY round DESC LIMIT 1"
)
_NEWEST = "SELECT MAX(round) FROM states WHERE stage = ? AND client_id = ? AND round <= ?"
_DROP_AFTER = "DELETE FROM states WHERE stage = ? AND client_id = ? AND round > ?"
_DROP_BEFORE = "DELETE FROM states WHERE stage = ? AND client_id = ? AND round < ?"
_SAVE = (
    "INSERT OR REPLACE INTO states (stage, client_id, round, sha256, content)"
    " VALUES (?, ?, ?, ?, ?)"
)
# CROSS keeps the order: from the few new versions to the old ones of the same clients.
_PRUNE = (
    "DELETE FROM states WHERE id IN (SELECT old.id FROM states AS new CROSS JOIN states AS old"
    " ON old.stage = new.stage AND old.client_id = new.client_id AND old.round < new.round"
    " WHERE new.stage = ? AND new.round > ? AND new.round <= ?"
    " AND NOT (old.round <= ? AND ? < new.round))"
)


class ClientStates:
    """States of clients by stage and round; `stages` are the run's, in order.

    Errors of the file are `CheckpointError`, a full disk is an OSError, and each is one line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ClientStates(Path(folder) / FILE_NAME, ["train"]) as states:
    ...         states.save("train", 1, {7: {"control": {"w": torch.ones(2)}}})
    ...         states.commit()
    ...         states.save("train", 2, {7: {"control": {"w": torch.zeros(2)}}})
    ...         states.load("train", 1, [7, 8])
    {7: {'control': {'w': tensor([1., 1.])}}}
    """

    def __init__(self, path: Path, stages: Sequence[str]) -> None:
        self._path = path
        self._stages = tuple(stages)
        # Up to these rounds nobody has a second version: they need not be looked through again.
        # Nobody goes back to before them: `rewind` would not find what was saved.
        self._pruned = dict.fromkeys(self._stages, 0)
        self._spared = dict.fromkeys(self._stages, 0)
        with _in_words(path):
            self._file = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None)
        try:
            with _in_words(path):
                self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; what was not committed is gone, and nothing is left beside it."""
        with contextlib.suppress(sqlite3.Error):  # it would hide what ended the run
            self._file.close()

    def load(self, stage: str, number: int, client_ids: Sequence[int]) -> dict[int, ClientState]:
        """Returns each client's newest state of round `number` or before, where it has one."""
        found = {}
        for client_id in client_ids:
            with _in_words(self._path):
                row = self._file.execute(_LOAD, (stage, int(client_id), number)).fetchone()
            if row is not None:
                found[client_id] = self._decoded(stage, client_id, *row)
        return found

    def newest(self, stage: str, number: int, client_ids: Sequence[int]) -> dict[int, int]:
        """Returns the rounds of the states that `load` would return."""
        found = {}
        for client_id in client_ids:
            with _in_words(self._path):
                row = self._file.execute(_NEWEST, (stage, int(client_id), number)).fetchone()
            if row[0] is not None:
                found[client_id] = int(row[0])
        return found

    def save(self, stage: str, number: int, states: Mapping[int, ClientState]) -> None:
        """Keeps states of a round; those of the same client and round are replaced."""
        with self._changing():
            # Told even of a round in which nobody keeps anything: `rewind` looks for it.
            self._file.execute("INSERT OR IGNORE INTO saved VALUES (?, ?)", (stage, number))
            for client_id, state in states.items():
                content = self._encoded(client_id, state)
                key = (stage, int(client_id), number)
                self._file.execute(_SAVE, (*key, _checksum(*key, content), content))

    def commit(self) -> None:
        """Makes durable what was saved and dropped; returns when it is on the disk."""
        if self._file.in_transaction:
            with _in_words(self._path):
                self._file.execute("COMMIT")

    def rewind(self, stage: str, number: int) -> None:
        """Drops what is newer than the checkpoint after round `number` of `stage`.

        Raises `CheckpointError` when that round's states are not there: then the file is not the
        one that the checkpoint was written with, and clients would silently begin anew.
        """
        place = self._stages.index(stage)
        with self._changing():
            self._require(stage, number)
            for table in ("states", "saved"):
                self._drop(table, "round > ?", stage, number)
                for later in self._stages[place + 1 :]:
                    self._drop(table, "round >= ?", later, 0)

    def prune(self, stage: str, number: int, best: int = 0) -> None:
        """Drops what nobody needs who resumes after round `number` of `stage` or later; commits.

        That is the oldest checkpoint's place (`server.checkpoints.oldest_kept`). What belongs to
        round `best` is spared: the stage may end with that round's weights. The place freed is used
        again by the rounds that follow. It is committed by itself because pages that one
        transaction both frees and fills would go through the journal.
        """
        place = self._stages.index(stage)
        begin = self._pruned[stage]
        if best != self._spared[stage]:  # what was spared for the one before may go now
            begin = min(begin, self._spared[stage])
        with self._changing():
            self._file.execute(_PRUNE, (stage, begin, number, best, best))
            self._drop("saved", "round < ?", stage, number)
            for earlier in self._stages[:place]:
                for table in ("states", "saved"):
                    self._drop(table, "round >= ?", earlier, 0)
        self.commit()
        self._pruned[stage] = max(self._pruned[stage], number)
        self._spared[stage] = best

    def drop_after(self, stage: str, rounds: Mapping[int, int]) -> None:
        """Drops what each of these clients has kept in rounds after its own one."""
        with self._changing():
            for client_id, number in rounds.items():
                self._file.execute(_DROP_AFTER, (stage, int(client_id), number))

    def prune_clients(self, stage: str, number: int, client_ids: Sequence[int]) -> None:
        """Drops what these clients have no need of who go back to round `number` at the most."""
        earlier = self._stages[: self._stages.index(stage)] if number > 0 else ()
        with self._changing():
            for client_id in client_ids:
                newest = self.newest(stage, number, [client_id]).get(client_id, 0)
                self._file.execute(_DROP_BEFORE, (stage, int(client_id), newest))
                for other in earlier:
                    self._file.execute(_DROP_AFTER, (other, int(client_id), 0))

    def _prepare(self) -> None:
        for setting in _SETTINGS:
            self._file.execute(f"PRAGMA {setting}")
        (version,) = self._file.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise CheckpointError(
                f"{self._path}: has format {version}, this version knows format {_VERSION}; "
                "go on with the version that began the run"
            )
        # Written even where nothing is new: that shows now whether it can be, and takes away what a
        # process that was killed may have left of its journal.
        self._file.execute("BEGIN")
        for statement in _SCHEMA if version == 0 else _SCHEMA[-1:]:
            self._file.execute(statement)
        self._file.execute("COMMIT")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with _in_words(self._path):
            if not self._file.in_transaction:
                self._file.execute("BEGIN")
            yield

    def _require(self, stage: str, number: int) -> None:
        query = "SELECT 1 FROM saved WHERE stage = ? AND round = ?"
        if number > 0 and self._file.execute(query, (stage, number)).fetchone() is None:
            raise CheckpointError(
                f"{self._path}: the states of stage {stage!r}, round {number}, are not in it, but "
                f"its checkpoint is there: the file was removed or is from another time; {_ANEW}"
            )

    def _drop(self, table: str, condition: str, stage: str, number: int) -> None:
        # Only our own words are pasted; values are bound.
        query = f"DELETE FROM {table} WHERE stage = ? AND {condition}"  # noqa: S608
        self._file.execute(query, (stage, number))

    def _encoded(self, client_id: int, state: ClientState) -> bytes:
        content = _encode(state)
        if len(content) > LARGEST_STATE_BYTES:
            raise CheckpointError(
                f"{self._path}: client {client_id} keeps {len(content)} bytes, "
                f"the most that can be kept is {LARGEST_STATE_BYTES}"
            )
        return content

    def _decoded(
        self, stage: str, client_id: int, number: int, sha256: bytes, content: bytes
    ) -> ClientState:
        if sha256 != _checksum(stage, client_id, number, content):
            raise CheckpointError(
                f"{self._path}: the state of client {client_id} (stage {stage!r}, round {number}) "
                f"is damaged: its content does not match its checksum; {_ANEW}"
            )
        return _decode(content)


def _checksum(stage: str, client_id: int, number: int, content: bytes) -> bytes:
    key = json.dumps([stage, int(client_id), number]).encode()
    found = hashlib.sha256(key)
    found.update(content)
    return found.digest()


def _encode(state: ClientState) -> bytes:
    """Returns the state as safetensors; a name is [place, part, array], in JSON.

    JSON because parts and arrays may be called anything, the place because safetensors has an order
    of its own. A part without arrays stands there as an empty one.
    """
    flat: Arrays = {}
    for part, arrays in state.items():
        for name, tensor in arrays.items():
            # Cloned, since safetensors refuses two names for the same memory.
            flat[json.dumps([len(flat), part, name])] = tensor.clone()
        if not arrays:
            flat[json.dumps([len(flat), part])] = torch.empty(0)
    return serialize(flat)


def _decode(content: bytes) -> ClientState:
    flat = deserialize(content)
    state: ClientState = {}
    for key in sorted(flat, key=json.loads):
        _, part, *names = json.loads(key)
        own = state.setdefault(part, {})
        for name in names:
            # Cloned for the same reason as in `load_arrays`: sums depend on how memory is aligned.
            own[name] = flat[key].clone()
    return state


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _told(path, error) from None


def _told(path: Path, error: sqlite3.Error) -> OSError | CheckpointError:
    """Returns an error of SQLite in the user's words: what, where, what to do."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without its details
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    what, advice = {
        sqlite3.SQLITE_CORRUPT: ("damaged", _ANEW),
        sqlite3.SQLITE_NOTADB: ("damaged", _ANEW),
        sqlite3.SQLITE_READONLY: ("cannot be written", "make the file and its folder writable"),
        sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "make its folder writable"),
        sqlite3.SQLITE_PERM: ("cannot be opened", "make the file and its folder writable"),
        sqlite3.SQLITE_BUSY: ("in use", "close the program that reads it, go on with --resume"),
        sqlite3.SQLITE_IOERR: ("the disk failed", "see to the disk or quota, go on with --resume"),
    }.get(code, ("cannot be used", _ANEW))
    return CheckpointError(f"{path}: {what} ({error}); {advice}")
