"""The process that stays warm: `python -m clients.warm.worker DESCRIPTOR PARENT`.

It reads frames from the socket with this descriptor, answers each, and ends with its service. The
first says what it hosts: the ids of a gateway's clients are too many for a command line.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from clients.warm.frames import Closed, receive_frame, send_frame
from clients.warm.trainer_pb2 import Chunk
from shared_models.errors import DataError, InputError, WildflowerError, one_line

_NICE = 5  # the device has other things to do

READY, DONE, FAILED, UNFIT = b"r", b"d", b"f", b"u"


def main(descriptor: int, parent: int) -> None:
    """Answers until the service is gone."""
    _end_with(parent)
    end = socket.socket(fileno=descriptor)
    from clients.hosting import Hosting

    hosting = Hosting.from_json(receive_frame(end).decode())
    os.environ["OMP_NUM_THREADS"] = str(hosting.threads)  # read when torch is imported
    os.nice(_NICE)
    import torch

    from clients.answers import answer, forget
    from clients.local_data import opened_by
    from clients.warm.packing import pack, unpack
    from shared_models.tasks.own import adopt

    torch.set_num_threads(hosting.threads)
    try:
        open_ = opened_by(hosting)
    except Exception as error:  # whatever it is, who started the device is to know
        # Data that are wrong stay so; memory or a file system may be there the next time.
        is_unfit = isinstance(error, (InputError, DataError))
        send_frame(end, (UNFIT if is_unfit else FAILED) + _told(error))
        return

    def answered(frame: bytes) -> bytes:
        chunk = Chunk.FromString(frame)
        header = chunk.header
        try:
            if header.task_source and adopt(header.task, header.task_source):
                forget()
            return DONE + pack(answer(header.verb, header.config, unpack(chunk.data), open_))
        except Exception as error:  # whatever it is, the server is to know, and the next may do
            return FAILED + _told(error)

    send_frame(end, READY)
    while True:
        send_frame(end, answered(receive_frame(end)))


def _told(error: Exception) -> bytes:
    own = isinstance(error, WildflowerError)
    return one_line(str(error) if own else f"{type(error).__name__}: {error}").encode()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, even in the middle of a training."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except Closed:
        sys.exit(0)
