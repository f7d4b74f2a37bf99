"""Frames between the service and its worker: a length, then bytes. Nothing is pickled."""

from __future__ import annotations

import socket
import struct

_LENGTH = struct.Struct("<Q")


class Closed(Exception):
    """The other end is gone."""


def send_frame(end: socket.socket, data: bytes) -> None:
    """Sends one frame; raises `Closed` when nobody takes it."""
    try:
        end.sendall(_LENGTH.pack(len(data)) + data)
    except OSError:
        raise Closed from None


def receive_frame(end: socket.socket) -> bytes:
    """Returns the next frame; raises `Closed` when the other end is gone."""
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    return _exactly(end, length)


def _exactly(end: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        try:
            piece = end.recv(min(count - len(data), 2**20))
        except ConnectionError:
            raise Closed from None
        if not piece:
            raise Closed
        data += piece
    return bytes(data)
