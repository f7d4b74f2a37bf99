"""Kernels in C, compiled for this machine's processor when they are first needed.

A small LSTM is a thousand products of a few rows each. No library is fast at those: oneDNN reaches
a third of a core's peak. The kernel in `lstm.c` keeps the rows of a product in registers and does
what lies between two products in one pass. It uses the compiler's vector types, so that the same
source serves every processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from clients.training import Unfit
from shared_models.errors import one_line

_SOURCE = Path(__file__).with_name("lstm.c")
_FLAGS = ("-O3", "-shared", "-fPIC")
_WIDEST = 16  # floats in a register of the widest processor: AVX-512


def find_compiler() -> str | None:
    """Returns the system's C compiler, or None when there is none."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


@functools.cache
def library() -> ctypes.CDLL:
    """Returns the compiled kernels, building them if they are not cached; `Unfit` if that fails."""
    compiler = find_compiler()
    if compiler is None:
        raise Unfit("there is no C compiler (cc, gcc or clang)")
    if not _SOURCE.exists():
        raise Unfit("the kernels' source did not come with this installation")
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
        made_of = (_SOURCE.read_bytes(), repr(_FLAGS).encode(), version, _processor())
        key = hashlib.sha256(b"".join(made_of)).hexdigest()[:16]
        path = platformdirs.user_cache_path("wildflower") / "kernels" / f"lstm-{key}.so"
        if not path.exists():
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except OSError as error:  # no room in the cache, or nothing there may be executed
        raise Unfit(f"the kernels cannot be built or loaded: {one_line(str(error))}") from None


def _build(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")  # two workers may build at the same time
    # What "this processor" is called differs: x86 and newer compilers, ARM and older ones.
    for target in ("-march=native", "-mcpu=native"):
        command = [compiler, *_FLAGS, target, "-o", str(temporary), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            temporary.replace(path)
            return
    temporary.unlink(missing_ok=True)
    raise Unfit(f"{compiler} cannot compile the kernels: {one_line(done.stderr)}")


def _processor() -> bytes:
    """Returns what tells processors apart: a cache may be shared by several machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return f"{platform.machine()} {platform.processor()} {features[:1]}".encode()


def fits_compiled(weights: Sequence[Tensor], *, wanted: bool) -> bool:
    """Whether the kernel can train these LSTM weights: one layer, the first, in whole registers."""
    first = weights[0]
    plain = first.dtype == torch.float32 and first.device.type == "cpu" and not wanted
    return plain and len(weights) == 4 and weights[1].shape[1] % _WIDEST == 0


class CompiledLastState:
    """Sequences `(n, time, channels)` to the last hidden state `(n, width)` of an LSTM layer."""

    def __init__(self, weights: Sequence[Tensor], rate: float) -> None:
        self._weights, self._rate = list(weights), rate
        self._library = library()
        self._kept: list[Tensor] = []
        self._sizes: tuple[int, int, int, int] = (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        rows, time, inputs = x.shape
        width = self._weights[1].shape[1]
        sizes = (time, rows, inputs, width)
        if sizes != self._sizes:
            self._sizes, self._kept = sizes, _buffers(*sizes, like=x)
        series, gates, cells, states, turned_x, turned_h, *_ = self._kept
        series.copy_(x.transpose(0, 1))
        kept = (gates, cells, states, turned_x, turned_h)
        self._library.lstm_forward(*sizes, *map(_pointer, (series, *self._weights, *kept)))
        return states[-1].clone()

    def backward(self, d: Tensor) -> None:
        series, gates, cells, states, turned_x, _, slope, carried = self._kept
        slope.copy_(d)
        arrays = (series, *self._weights, gates, cells, states, turned_x, slope, carried)
        rate = ctypes.c_float(self._rate)
        self._library.lstm_backward(*self._sizes, *map(_pointer, arrays), rate)


def _buffers(time: int, rows: int, inputs: int, width: int, like: Tensor) -> list[Tensor]:
    """Returns what the kernel works in, in the order of its arguments."""
    shapes = (
        (time, rows, inputs),
        (time, rows, 4 * width),
        (time + 1, rows, width),
        (time + 1, rows, width),
        (inputs, 4 * width),
        (width, 4 * width),
        (rows, width),
        (rows, width),
    )
    return [like.new_empty(shape) for shape in shapes]


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
