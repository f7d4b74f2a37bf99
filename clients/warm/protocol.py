"""How a message and its answer travel in pieces, and what the ends agree on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from clients.warm.trainer_pb2 import Chunk, Header
from shared_models.errors import WildflowerError

VERSION = 1
METHOD = "/wildflower.trainer.v1.Trainer/Answer"
SERVICE = "wildflower.trainer.v1.Trainer"
BEGUN = (("begun", "1"),)  # the metadata of a call that a worker is at
PIECE_BYTES = 2**20
MOST_BYTES = 512 * 2**20


class TooLarge(WildflowerError):
    """A message is larger than the two ends agreed on."""


class Incomplete(WildflowerError):
    """A message ended before, or went on after, the size that its header says."""


def cut(header: Header, data: bytes) -> Iterator[Chunk]:
    """Returns a message in pieces, the first with the header; raises `TooLarge` at once."""
    if len(data) > MOST_BYTES:
        raise TooLarge(_too_large(len(data)))
    header.total_bytes = len(data)
    return _pieces(header, data)


def _pieces(header: Header, data: bytes) -> Iterator[Chunk]:
    yield Chunk(header=header, data=data[:PIECE_BYTES])
    for start in range(PIECE_BYTES, len(data), PIECE_BYTES):
        yield Chunk(data=data[start : start + PIECE_BYTES])


def join(chunks: Iterable[Chunk]) -> tuple[Header, bytes]:
    """Returns a message's header and bytes, all of them.

    Raises `TooLarge` as soon as there are too many, `Incomplete` when they are not as many as
    the header says.

    >>> join(cut(Header(verb="query.hello"), b"hello"))[1]
    b'hello'
    """
    header, data = Header(), bytearray()
    for place, chunk in enumerate(chunks):
        if place == 0:
            header = chunk.header
        data += chunk.data
        if max(len(data), header.total_bytes) > MOST_BYTES:
            raise TooLarge(_too_large(max(len(data), header.total_bytes)))
    if len(data) != header.total_bytes:
        raise Incomplete(f"a message of {header.total_bytes} bytes came as {len(data)}")
    return header, bytes(data)


def _too_large(size: int) -> str:
    return f"a message of {size} bytes; a trainer takes {MOST_BYTES} at most"
