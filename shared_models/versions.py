"""Versions of what results depend on."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = ("wildflower", "flwr", "torch", "numpy", "ray", "onnx", "onnxruntime", "ai-edge-litert")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of those packages that are installed.

    Where the code came in a Flower bundle, `wildflower` itself is not an installed package.
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
