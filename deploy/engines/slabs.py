"""Shared memory between the processes of one machine: a writer's slabs, which a reader maps.

Ray's object store takes two milliseconds a reply of one megabyte; this takes a third of one. A slab
is a file without a name that its writer holds open (`memfd_create`) and its reader finds through
the writer's `/proc` entry: when the writer dies, by whatever means, nothing is left over. Where
that cannot be (no Linux, a reader on another machine) nothing is delivered: Ray has to carry it.

A slab begins with a byte that says whether its content is wanted: set by the writer, cleared by the
reader when the last view of the content is gone. Each slab has one writer and one reader. A notice
is what one writer has to tell many readers: they map it while it hangs, and keep what they mapped.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Buffer = NDArray[np.uint8]

_HEAD = 64  # the byte in use, and at 16 the slab's secret name; buffers begin on multiples of this
_NAME = slice(16, 32)
_SLABS = 8


@dataclass(frozen=True)
class Ticket:
    """Where the buffers of a delivery lie; `name` tells a slab from others that had its number."""

    pid: int
    file: int
    name: bytes
    sizes: tuple[int, ...]


class Writer:
    """Delivers buffers in slabs of its own, which it uses again when their reader is done."""

    def __init__(self, beacon: Ticket | None) -> None:
        self._slabs: list[_Slab] = []
        self._reaches = beacon is not None and _can_map(beacon)

    def deliver(self, buffers: Sequence[Buffer]) -> Ticket | None:
        """Copies buffers into a slab; None when the reader is elsewhere, or wants all slabs."""
        if not self._reaches:
            return None
        slab = self._free(sum(_padded(buffer.nbytes) for buffer in buffers))
        return None if slab is None else slab.fill(buffers)

    def _free(self, size: int) -> _Slab | None:
        """Returns a slab that is large enough: one that is free, or a new one."""
        free = [slab for slab in self._slabs if not slab.wanted]
        for slab in free:
            if slab.size >= size:
                return slab
            self._slabs.remove(slab)  # the model has grown: a larger one will take its place
            slab.close()
        if len(self._slabs) >= _SLABS:
            return None
        self._slabs.append(_Slab(size))
        return self._slabs[-1]


class Notice:
    """Buffers for whoever has the ticket, until it is closed."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._slab = _Slab(sum(_padded(buffer.nbytes) for buffer in buffers))
        self.ticket = self._slab.fill(buffers)

    def close(self) -> None:
        """Takes it down; what is mapped stays with those who mapped it."""
        self._slab.close()


def read_notice(ticket: Ticket) -> list[Buffer]:
    """Returns the buffers of a notice; raises OSError or ValueError when it was taken down."""
    content = _content(_map(ticket))
    return [content[start:end] for start, end in _places(ticket.sizes)]


class Reader:
    """Opens deliveries. A writer's slab is mapped once and read in place."""

    def __init__(self) -> None:
        self._maps: dict[Ticket, mmap.mmap] = {}
        self._beacon = _Slab(0) if hasattr(os, "memfd_create") else None

    @property
    def beacon(self) -> Ticket | None:
        """What a writer tries, to find out whether it shares the reader's machine."""
        return self._beacon.ticket(()) if self._beacon else None

    def open(self, ticket: Ticket) -> list[Buffer]:
        """Returns the buffers; the slab is its writer's again when the last view is gone."""
        slab = Ticket(ticket.pid, ticket.file, ticket.name, ())
        memory = self._maps.get(slab)
        if memory is None:
            self._forget_the_dead()
            memory = self._maps[slab] = _map(ticket)
        content = _content(memory)
        weakref.finalize(content, _release, memory).atexit = False
        return [content[start:end] for start, end in _places(ticket.sizes)]

    def _forget_the_dead(self) -> None:
        for slab in [slab for slab in self._maps if not _path(slab).exists()]:
            del self._maps[slab]  # unmapped when the last view is gone


class _Slab:
    """Anonymous memory with a file number."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._name = secrets.token_bytes(16)
        self._file = os.memfd_create("wildflower")
        os.ftruncate(self._file, _HEAD + size)
        self._memory = mmap.mmap(self._file, _HEAD + size)
        self._memory[_NAME] = self._name

    @property
    def wanted(self) -> bool:
        return self._memory[0] != 0

    def fill(self, buffers: Sequence[Buffer]) -> Ticket:
        sizes = tuple(buffer.nbytes for buffer in buffers)
        content = np.frombuffer(self._memory, np.uint8)
        for buffer, (start, end) in zip(buffers, _places(sizes), strict=True):
            content[start:end] = buffer
        self._memory[0] = 1
        return self.ticket(sizes)

    def ticket(self, sizes: tuple[int, ...]) -> Ticket:
        return Ticket(os.getpid(), self._file, self._name, sizes)

    def close(self) -> None:
        self._memory.close()
        os.close(self._file)


def _map(ticket: Ticket) -> mmap.mmap:
    """Maps a slab; raises OSError or ValueError when it is not there."""
    with _path(ticket).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    if memory[_NAME] != ticket.name:
        raise ValueError("another file has its number now")
    return memory


def _content(memory: mmap.mmap) -> Buffer:
    content = np.frombuffer(memory, np.uint8)
    content.flags.writeable = False
    return content


def _can_map(ticket: Ticket) -> bool:
    try:
        _map(ticket)
    except (OSError, ValueError):
        return False
    return True


def _path(ticket: Ticket) -> Path:
    return Path(f"/proc/{ticket.pid}/fd/{ticket.file}")


def _release(memory: mmap.mmap) -> None:
    memory[0] = 0


def _padded(size: int) -> int:
    return -(-size // _HEAD) * _HEAD


def _places(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = _HEAD
    for size in sizes:
        yield start, start + size
        start += _padded(size)
