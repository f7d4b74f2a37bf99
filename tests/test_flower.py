"""The same two apps under stock Flower: `flwr run .` builds the bundle and runs it on two nodes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tomli_w

from shared_models.arrays import load_arrays
from tests.conftest import DIGITS, ROOT

BIN = Path(sys.executable).parent
TWO_NODES = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2"


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose local SuperLink is ours alone, and is ended afterwards."""
    home = tmp_path / "flwr"
    yield {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    end_processes_of(home)


def end_processes_of(home: Path) -> None:
    """Ends what Flower started for us: the processes whose FLWR_HOME is this test's own."""
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("FLWR_HOME") == str(home)
        except psutil.Error:
            continue
        if ours and process.pid != os.getpid():
            process.kill()


def flwr(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [BIN / "flwr", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(path: Path, environment: dict[str, str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    log = Path(environment["FLWR_HOME"]) / "local-superlink" / "superlink.log"
    while not path.exists():
        told = log.read_text()[-3000:] if log.exists() else "no log"
        assert time.monotonic() < deadline, told
        time.sleep(0.5)


def test_the_bundle_holds_code_only(flower: dict[str, str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(
        ROOT, project, ignore=shutil.ignore_patterns(".venv", ".git", "runs", ".*_cache")
    )
    flwr(flower, "build", "--app", str(project))
    (bundle,) = [*project.glob("*.fab"), *ROOT.glob("*.fab")]
    names = zipfile.ZipFile(bundle).namelist()
    bundle.unlink()
    assert {"server/app.py", "clients/app.py", "shared_models/wire.py"} <= set(names)
    known = ("server/", "clients/", "shared_models/", ".info/")
    assert [name for name in names if "/" in name and not name.startswith(known)] == []


def test_stock_flwr_run_trains_on_two_nodes(flower: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = DIGITS.replace("rounds = 4", "rounds = 2") + '[[stages]]\nkind = "calibrate"\n'
    run_config = tmp_path / "run.toml"
    run_config.write_text(tomli_w.dumps({"config": config, "out": str(out)}))
    flwr(flower, "run", ".", "--federation-config", TWO_NODES, "--run-config", str(run_config))
    wait_for(out / "summary.json", flower, seconds=240)
    assert "encoder.conv.weight" in load_arrays(out / "model.safetensors")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert '"clients_aggregated": 10' in lines[0]
    assert '"block_map": "node"' in (out / "manifest.json").read_text()
    assert '"clients_answered": 12' in (out / "calibration.json").read_text()
