"""Ray: one of our own on this machine, or a cluster that is there."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from shared_models.errors import InputError, one_line
from shared_models.machine import cores

# Ray would reach out for statistics, repeat in its own words what a crew handles, and advise.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# When we are killed, two of Ray's processes would look for their server for a minute.
_MORTAL = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
STORE_BYTES = 512 * 2**20
_LEAST_STORE_BYTES = 80 * 2**20  # Ray refuses less, and takes the disk where shared memory has not
_CONNECT_S = 5.0


@contextlib.contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[int]:
    """Starts Ray for `workers` (absent: one a core) or connects to a cluster; yields their number.

    Must be called by the main thread: Ray's processes end with the thread that started them. Raises
    `InputError` when nobody answers at `address`.
    """
    os.environ.update(_QUIET if address else _QUIET | _MORTAL)  # read when Ray is imported
    import ray

    if address is not None:
        _knock(address)
    try:
        with _own_signals():
            number = _start(workers or cores()) if address is None else _join(address, workers)
        yield number
    finally:  # also when the start itself was interrupted
        ray.shutdown()
        _collect()


def _collect() -> None:
    """Closes the files that Ray leaves to the garbage collector, which would tell somebody else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _start(workers: int) -> int:
    import ray

    ray.init(
        address="local",
        num_cpus=workers,
        num_gpus=0,
        object_store_memory=max(_LEAST_STORE_BYTES, min(STORE_BYTES, shared_memory_bytes() // 2)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return workers


def _join(address: str, workers: int | None) -> int:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"ray_address {address!r}: {one_line(str(error))}") from None
    found = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return workers or max(1, int(found.get("CPU", 1)))


def _knock(address: str) -> None:
    """Raises `InputError` at once, where Ray would try for half a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"ray_address {address!r}: expected HOST:PORT, as `ray start` prints it")
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"ray_address {address!r}: nobody answers there: {reason}") from None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps our own way to end on SIGTERM, which `ray.init` would replace by its own."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def shared_memory_bytes() -> int:
    """Returns the bytes that are free where Ray's object store lies."""
    place = Path("/dev/shm")  # noqa: S108 - Ray's choice, not ours
    return shutil.disk_usage(place if place.is_dir() else tempfile.gettempdir()).free
