"""What a run ran on: versions, machine, plan, data."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from server.population import Population
from shared_models.config import Config

_PACKAGES = ("wildflower", "flwr", "torch", "numpy", "ray", "onnx", "onnxruntime", "ai-edge-litert")


def make_manifest(config: Config, population: Population) -> dict[str, Any]:
    """Returns the manifest as plain values."""
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "engine": config.engine,
        "plan": {
            **config.plan.model_dump(),
            "threads": 1,
            "block_map": "cohort" if population.node_of is None else "node",
        },
        "population": {"clients": len(population), "examples": sum(population.examples)},
        "data_sha256": list(population.data_sha256),
        "git_commit": git_commit(Path(__file__).parent),
    }


def versions() -> dict[str, str]:
    """Returns the versions of the packages that results depend on, where they are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """Returns the commit of the checkout that `folder` lies in, if any."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
