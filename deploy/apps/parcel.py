"""How Flower's records travel: a small skeleton, and apart from it the bytes of their arrays.

Pickling a message whole copies every array three times on its way. Here the bytes stay where they
are until Ray writes them to its object store; and who unpacks a skeleton twice gets two messages
that share their arrays' bytes, which are immutable, and nothing that an app could change.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

# Smaller arrays stay in the skeleton.
_APART_BYTES = 4096

Bytes = NDArray[np.uint8]


class _Packer(pickle.Pickler):
    """A pickler that leaves out the bytes of large arrays and lists them instead."""

    def __init__(self, file: io.BytesIO) -> None:
        self.apart: list[bytes] = []
        super().__init__(file, protocol=5, buffer_callback=self._keep)

    def reducer_override(self, value: Any) -> Any:
        """Takes an `Array` apart; leaves everything else to pickle."""
        if type(value) is not Array or len(value.data) < _APART_BYTES:
            return NotImplemented
        self.apart.append(bytes(value.data))
        fields = {
            "dtype": value.dtype,
            "shape": value.shape,
            "stype": value.stype,
            "data": pickle.PickleBuffer(self.apart[-1]),
        }
        return copyreg.__newobj__, (Array,), fields  # type: ignore[attr-defined]

    @staticmethod
    def _keep(_: pickle.PickleBuffer) -> bool:
        return False  # it stays out


def pack(value: Any) -> tuple[bytes, list[bytes]]:
    """Returns a skeleton and the bytes of the large arrays in it, which are not copied."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    return file.getvalue(), packer.apart


def unpack(skeleton: bytes, apart: Sequence[bytes]) -> Any:
    """Returns what was packed; its arrays hold the very bytes that are given."""
    return pickle.loads(skeleton, buffers=apart)  # noqa: S301 - one machine, one user, one app


def as_arrays(apart: Iterable[bytes]) -> list[Bytes]:
    """Returns bytes in a form that Ray writes to its object store without a copy of its own."""
    return [np.frombuffer(part, np.uint8) for part in apart]


def as_bytes(apart: Iterable[Bytes]) -> list[bytes]:
    """Returns bytes again: a copy, so that the object store can let go of its own."""
    return [part.tobytes() for part in apart]
