"""Runs one file in one runtime, in a process that may die.

    python worker.py RUNTIME FILE THREADS MEMORY_MB

Numpy, the runtime and nothing of ours, so that the interpreter of an old runtime can run it too
(Python 3.9). It answers frames on standard output to frames on standard input. A frame is two
little-endian lengths of 8 bytes, a JSON header, and the bytes of the array whose dtype and shape
the header tells.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, BinaryIO

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: our modules are not for the runtime to find

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[Any]], NDArray[Any]]
Opened = tuple[Run, tuple[int, ...], str, str]
"""What runs examples, the shape (the batch first) and dtype of its input, and its version."""


def open_onnx(path: str, threads: int) -> Opened:
    """Opens an ONNX file in ONNX Runtime; raises what it raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = _one_of(session.get_inputs())
    shape = tuple(size if isinstance(size, int) else 1 for size in entry.shape)
    if entry.type not in _ONNX_DTYPES:
        raise TypeError(f"its input {entry.name!r} is {entry.type}, which cannot be fed")
    dtype = np.dtype(_ONNX_DTYPES[entry.type])

    def run(x: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = session.run(None, {entry.name: x.astype(dtype)})[0]
        return found

    return run, shape, "int64" if dtype.kind in "iub" else "float32", version("onnxruntime")


_ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{
        f"tensor({kind}{bits})": f"{kind}{bits}"
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
}


def _one_of(inputs: list[Any]) -> list[Any]:
    if len(inputs) != 1:
        raise TypeError(f"it takes {len(inputs)} inputs at once, only one can be fed")
    return inputs


def open_litert(path: str, threads: int) -> Opened:
    """Opens a TFLite file in LiteRT; raises what it raises."""
    from ai_edge_litert.interpreter import Interpreter

    return *_tflite(Interpreter(model_path=path, num_threads=threads)), version("ai-edge-litert")


def open_tflite_runtime(path: str, threads: int) -> Opened:
    """Opens a TFLite file in the runtime that came before LiteRT; raises what it raises."""
    from tflite_runtime.interpreter import Interpreter

    return *_tflite(Interpreter(model_path=path, num_threads=threads)), version("tflite-runtime")


def _tflite(interpreter: Any) -> tuple[Run, tuple[int, ...], str]:
    interpreter.allocate_tensors()
    (entry,) = _one_of(interpreter.get_input_details())
    exit_ = interpreter.get_output_details()[0]

    def run_one(x: NDArray[Any]) -> NDArray[Any]:
        interpreter.reset_all_variables()  # a recurrent model starts every example afresh
        for part in _steps(x, tuple(entry["shape"])):
            interpreter.set_tensor(entry["index"], _quantize(part, entry))
            interpreter.invoke()
        return _dequantize(interpreter.get_tensor(exit_["index"]), exit_)

    def run(x: NDArray[Any]) -> NDArray[Any]:
        # The file's batch is fixed at 1: some converted operators do not take another.
        if len(x) == 1:
            return run_one(x)
        return np.concatenate([run_one(x[place : place + 1]) for place in range(len(x))])

    whole = np.issubdtype(entry["dtype"], np.integer) and not entry["quantization"][0]
    return run, tuple(map(int, entry["shape"])), "int64" if whole else "float32"


def _steps(x: NDArray[Any], shape: tuple[int, ...]) -> list[NDArray[Any]]:
    """Returns what is fed one after another: an example, or its steps if it takes one at a time."""
    if x.ndim == len(shape) > 1 and shape[1] == 1:
        return [x[:, step : step + 1] for step in range(x.shape[1])]
    return [x]


def _quantize(x: NDArray[Any], detail: dict[str, Any]) -> NDArray[Any]:
    scale, zero = detail["quantization"]
    if not scale:
        return x.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    steps: NDArray[Any] = np.clip(np.round(x / scale) + zero, limits.min, limits.max)
    return steps.astype(detail["dtype"])


def _dequantize(y: NDArray[Any], detail: dict[str, Any]) -> NDArray[Any]:
    scale, zero = detail["quantization"]
    values = y.astype(np.float32)
    return (values - np.float32(zero)) * np.float32(scale) if scale else values


OPENERS = {
    "onnxruntime": open_onnx,
    "litert": open_litert,
    "tflite-runtime": open_tflite_runtime,
}


def peak_mb() -> float:
    """Returns the most memory that this process has held at once, in MB."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    # Elsewhere in bytes; not used on Linux, where it begins with what the parent held.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def time_each(run: Run, x: NDArray[Any], runs: int) -> NDArray[Any]:
    """Returns the milliseconds of `runs` single examples, one after another, after a warm-up."""
    singles = [x[place : place + 1] for place in range(len(x))]
    for one in singles[:10]:
        run(one)
    times = np.empty(runs)
    for place in range(runs):
        one = singles[place % len(singles)]
        began = time.perf_counter()
        run(one)
        times[place] = (time.perf_counter() - began) * 1e3
    return times


def read_frame(file: BinaryIO) -> tuple[dict[str, Any], NDArray[Any]]:
    """Returns a header and its array; raises `EOFError` when the other side is gone."""
    lengths = file.read(16)
    if len(lengths) < 16:
        raise EOFError
    head, body = struct.unpack("<QQ", lengths)
    header = json.loads(file.read(head))
    content = np.frombuffer(file.read(body), header["dtype"])
    return header, content.reshape(header["shape"])


def write_frame(file: BinaryIO, header: dict[str, Any], array: NDArray[Any]) -> None:
    """Writes a header and an array, which may be empty."""
    whole = dict(header, dtype=array.dtype.str, shape=array.shape)
    head = json.dumps(whole).encode()
    body = np.ascontiguousarray(array).tobytes()
    file.write(struct.pack("<QQ", len(head), len(body)) + head + body)
    file.flush()


def limit(megabytes: int) -> None:
    """Bounds this process's memory, the files that it can write, and its core dump (none)."""
    import resource

    bounds = {
        resource.RLIMIT_AS: megabytes * 1_000_000,
        resource.RLIMIT_FSIZE: 1_000_000,
        resource.RLIMIT_CORE: 0,
    }
    for kind, size in bounds.items():
        with contextlib.suppress(ValueError, OSError):  # not every system has each
            resource.setrlimit(kind, (size, size))


def serve(answers: BinaryIO, runtime: str, path: str, threads: int) -> None:
    """Opens the file, tells about it, then answers until the other side is gone."""
    began = time.perf_counter()
    run, shape, dtype, told_version = OPENERS[runtime](path, threads)
    ms = (time.perf_counter() - began) * 1e3
    nothing = np.empty(0, np.float32)
    facts = {"version": told_version, "input": shape, "takes": dtype, "open_ms": ms}
    write_frame(answers, facts, nothing)
    while True:
        asked, x = read_frame(sys.stdin.buffer)
        if asked["do"] == "run":
            write_frame(answers, {}, run(x).astype(np.float32))
        else:
            times = time_each(run, x, asked["runs"])
            write_frame(answers, {"peak_mb": peak_mb()}, times)


def main(runtime: str, path: str, threads: str, megabytes: str) -> None:
    """Serves; what a runtime raises becomes the last answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the runtime prints is no answer
    limit(int(megabytes))
    try:
        serve(answers, runtime, path, int(threads))
    except (EOFError, KeyboardInterrupt):
        pass
    except BaseException as error:  # runtimes raise anything
        told = {"error": f"{error}" or type(error).__name__, "kind": type(error).__name__}
        write_frame(answers, told, np.empty(0, np.float32))


if __name__ == "__main__":
    main(*sys.argv[1:])
