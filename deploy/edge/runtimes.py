"""The runtimes that devices have, and a file open in one of them. No torch here."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deploy.edge.child import Child
from shared_models.errors import ExportError, InputError, did_you_mean

Floats: TypeAlias = NDArray[np.float32]
Predict: TypeAlias = Callable[[NDArray[Any]], Floats]
"""From model input `(n, ...)` to outputs, an example a row."""

OLD_PYTHON = "WILDFLOWER_TFLITE_PYTHON"
"""Names an interpreter that has tflite-runtime, in the place of the checkout's `.venv-tflite`."""

_PACKAGES = {
    "onnxruntime": "onnxruntime",
    "litert": "ai_edge_litert",
    "tflite-runtime": "tflite_runtime",
}
_RUNTIMES = {".onnx": ("onnxruntime",), ".tflite": ("litert", "tflite-runtime")}
SUFFIXES = tuple(_RUNTIMES)
_OPEN_S, _EXAMPLE_S = 60.0, 1.0


@dataclass(frozen=True)
class Facts:
    """What a runtime says of a file that it opened: shape and dtype of its input, batch first."""

    version: str
    shape: tuple[int, ...]
    dtype: str
    open_ms: float


class Model:
    """A file open in a runtime, in a process of its own; a context manager that ends it.

    All raise `ExportError`, one line, when that process crashes, hangs or needs too much memory.
    """

    def __init__(self, child: Child) -> None:
        self._child = child
        try:
            told, _ = child.ask(None, deadline_s=_OPEN_S)
            shape = tuple(int(size) for size in told["input"])
            self.facts = Facts(str(told["version"]), shape, str(told["takes"]), told["open_ms"])
        except BaseException:
            child.close()
            raise

    def predict(self, x: NDArray[Any]) -> Floats:
        """Returns the outputs `(n, ...)` for model input `(n, ...)`."""
        deadline = _OPEN_S + _EXAMPLE_S * len(x)
        return self._child.ask({"do": "run"}, x, deadline_s=deadline)[1].astype(np.float32)

    def time(self, x: NDArray[Any], runs: int) -> tuple[NDArray[Any], float]:
        """Returns the milliseconds of each of `runs` single examples, and the peak memory in MB.

        They are taken in the process that runs the file, so the way to it does not count.
        """
        deadline = _OPEN_S + _EXAMPLE_S * runs
        told, times = self._child.ask({"do": "time", "runs": runs}, x, deadline_s=deadline)
        return times, float(told["peak_mb"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()


def open_model(path: Path, runtime: str = "", threads: int = 1) -> Model:
    """Opens a file in a runtime, by default the first for its suffix that is installed.

    Raises `InputError` for a wrong path or name, `ExportError` when the runtime refuses the file.
    """
    possible = runtimes_for(path)
    if runtime and runtime not in possible:
        raise InputError(f"{path}: runs in no {runtime!r}; {did_you_mean(runtime, possible)}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    for name in (runtime,) if runtime else possible:
        if python := python_of(name):
            return Model(Child(python, name, path, threads))
    raise ExportError(
        f"{path}: {runtime or ' and '.join(possible)} is not installed: "
        f"install the `edge` extra, or make .venv-tflite with `make edge-env`"
    )


def runtimes_for(path: Path) -> tuple[str, ...]:
    """Returns the names of the runtimes that a file is for; raises `InputError` when there is none.

    >>> runtimes_for(Path("model.tflite"))
    ('litert', 'tflite-runtime')
    """
    if path.suffix not in _RUNTIMES:
        raise InputError(f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}")
    return _RUNTIMES[path.suffix]


def is_installed(runtime: str) -> bool:
    """Whether this machine has a runtime."""
    return python_of(runtime) is not None


def python_of(runtime: str) -> Path | None:
    """Returns the interpreter that has a runtime, None if there is none."""
    if importlib.util.find_spec(_PACKAGES[runtime]):
        return Path(sys.executable)
    return _old_python() if runtime == "tflite-runtime" else None


def _old_python() -> Path | None:
    """Returns the interpreter of tflite-runtime, which does not go with our numpy."""
    if named := os.environ.get(OLD_PYTHON):
        if not Path(named).is_file():
            raise InputError(f"{OLD_PYTHON}={named}: there is no such interpreter")
        return Path(named)
    beside = Path(__file__).parents[2] / ".venv-tflite" / "bin" / "python"
    return beside if beside.is_file() else None
