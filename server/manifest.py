"""What a run ran on: versions, machine, plan, data."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from server.population import Hosted, Population
from shared_models.config import Config
from shared_models.versions import versions


@dataclass(frozen=True)
class Engine:
    """What carries messages to clients, and with how many workers, where it has a number."""

    name: str
    workers: int | None = None


def make_manifest(config: Config, population: Population, engine: Engine) -> dict[str, Any]:
    """Returns the manifest as plain values."""
    return {
        "config_sha256": config_digest(config),
        "versions": versions(),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "engine": engine.name,
        "workers": engine.workers,
        "plan": {
            **config.settled_plan.model_dump(exclude={"nodes"}),
            "threads": 1,
            **_block_map(population),
        },
        "population": {
            "clients": len(population),
            "examples": sum(population.examples),
            **({"labelled": sum(population.labelled)} if population.labelled else {}),
        },
        **({"init": config.init, "init_sha256": config.init_sha256} if config.init else {}),
        "data_sha256": list(population.data_sha256),
        **_hosts(population),
        "git_commit": git_commit(Path(__file__).parent),
    }


def config_digest(config: Config) -> str:
    """Returns a sha256 of what makes the run this run."""
    return hashlib.sha256(json.dumps(config.identity(), sort_keys=True).encode()).hexdigest()


def _block_map(population: Population) -> dict[str, Any]:
    """Returns the rule, and on a fleet who shared a node: enough to cut the same blocks again."""
    if not population.block_groups:
        return {"block_map": "cohort"}
    return {"block_map": "node", "nodes": sorted(sorted(ids) for ids in population.block_groups)}


def _hosts(population: Population) -> dict[str, Any]:
    """Returns what each of a fleet's nodes had: who comes back has to be who went."""
    if not population.hosts:
        return {}
    return {"hosts": [json.loads(json.dumps(asdict(host))) for host in population.hosts]}


def hosts_in(manifest: Mapping[str, Any]) -> tuple[Hosted, ...]:
    """Returns the nodes of the fleet that a manifest tells of; none for a run without."""
    return tuple(
        Hosted(
            tuple(own["client_ids"]),
            tuple(own["examples"]),
            own["data_sha256"],
            tuple(own.get("labelled", ())),  # older ones do not say
        )
        for own in manifest.get("hosts", ())
    )


def git_commit(folder: Path) -> str | None:
    """Returns the commit of the checkout that `folder` lies in, if any."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
