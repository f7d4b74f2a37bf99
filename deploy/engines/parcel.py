"""Flower's values as a small skeleton and, apart from it, the raw bytes of their arrays.

Whoever carries the bytes (Ray's object store, shared memory) need not copy them: unpacked arrays
are views into what was carried, and must not be written to.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

Buffer = NDArray[np.uint8]


@dataclass(frozen=True)
class Parcel:
    """A packed value."""

    skeleton: bytes
    buffers: tuple[Buffer, ...]


def pack(value: Any, place_of: Callable[[ArrayRecord], int] | None = None) -> Parcel:
    """Packs a message or a record.

    With `place_of`, array records stay behind: in the skeleton stands the number that it returns.
    """
    file = io.BytesIO()
    packer = _Packer(file, place_of)
    packer.dump(value)
    return Parcel(
        file.getvalue(), tuple(np.frombuffer(buffer.raw(), np.uint8) for buffer in packer.buffers)
    )


def unpack(
    skeleton: bytes, buffers: Sequence[Any], record_at: Callable[[int], ArrayRecord] | None = None
) -> Any:
    """Returns what was packed; `record_at` gives the array records that stayed behind."""
    return _Unpacker(io.BytesIO(skeleton), buffers, record_at).load()


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, place_of: Callable[[ArrayRecord], int] | None) -> None:
        self.buffers: list[pickle.PickleBuffer] = []
        self._place_of = place_of
        if place_of is not None:  # pickle would ask it about every single value
            self.persistent_id = self._left_behind  # type: ignore[method-assign]
        super().__init__(file, protocol=5, buffer_callback=self.buffers.append)

    def _left_behind(self, value: Any) -> int | None:
        if self._place_of is not None and type(value) is ArrayRecord:
            return self._place_of(value)
        return None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Array):
            parts = (value.dtype, value.shape, value.stype, pickle.PickleBuffer(value.data))
            return _array, parts
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(
        self,
        file: io.BytesIO,
        buffers: Sequence[Any],
        record_at: Callable[[int], ArrayRecord] | None,
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._record_at = record_at

    def persistent_load(self, place: int) -> ArrayRecord:
        if self._record_at is None:
            raise pickle.UnpicklingError("a record stayed behind")
        return self._record_at(place)


def _array(dtype: str, shape: tuple[int, ...], stype: str, data: Any) -> Array:
    """Returns an array around a buffer; Flower's own constructor would have it copied first."""
    array = Array.__new__(Array)
    # Its own way to set a field forgets its parts' digests each time; here are none yet.
    array.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=memoryview(data))
    return array
