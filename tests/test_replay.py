"""`simulate --plan RUN/manifest.json`: what a fleet trained, again, to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import run
from server.run_folder import RunFolder
from shared_models.config import Plan, parse_config
from shared_models.errors import ConfigError
from shared_models.files import sha256_of
from tests.conftest import DIGITS, ROOT
from tests.fleet_in_memory import fleet, train
from tests.in_memory import config_of

# One client of the population has no node: a replay must not draw it either.
SMALL = ("stages.train.rounds=2", "stages.train.clients_per_round=6")


@pytest.fixture(scope="module")
def of_a_fleet(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two nodes of three: two thirds of the clients, in blocks by node."""
    config = config_of(*SMALL, "stages.train.aggregator=median")
    return train(config, fleet(config, 71, 72, places=3), tmp_path_factory.mktemp("fleet") / "r")[0]


def test_a_fleets_run_is_replayed_bit_for_bit(of_a_fleet: RunFolder, tmp_path: Path) -> None:
    out, manifest = tmp_path / "replay", str(of_a_fleet.manifest_file)
    assert run(["simulate", "--plan", manifest, "--out", str(out)]) == 0
    replay = RunFolder(out)
    assert sha256_of(replay.model_file) == sha256_of(of_a_fleet.model_file)
    assert replay.manifest()["population"] == of_a_fleet.manifest()["population"]
    assert replay.config().plan.nodes == ((0, 3, 6, 9), (1, 4, 7, 10))


@pytest.mark.slow
def test_under_ray_too(of_a_fleet: RunFolder, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy", "simulate", "--plan", str(of_a_fleet.manifest_file)]
    more = ["--out", str(tmp_path / "replay"), "--engine", "ray", "--workers", "2"]
    subprocess.run([*command, *more], check=True, cwd=ROOT, capture_output=True)
    replay = tmp_path / "replay" / "model.safetensors"
    assert sha256_of(replay) == sha256_of(of_a_fleet.model_file)


def test_a_replays_own_config_runs_it_again(of_a_fleet: RunFolder, tmp_path: Path) -> None:
    out, again = tmp_path / "replay", tmp_path / "again"
    manifest = str(of_a_fleet.manifest_file)
    assert run(["simulate", "--plan", manifest, "--out", str(out)]) == 0
    assert run(["simulate", str(out / "config.toml"), "--out", str(again)]) == 0
    assert sha256_of(again / "model.safetensors") == sha256_of(of_a_fleet.model_file)


def test_without_the_fleets_block_map_the_bytes_are_others(
    of_a_fleet: RunFolder, tmp_path: Path
) -> None:
    out = tmp_path / "other"
    assert run(["simulate", str(of_a_fleet.config_file), "--out", str(out)]) == 0
    assert sha256_of(out / "model.safetensors") != sha256_of(of_a_fleet.model_file)


def test_a_fleet_that_trained_on_its_devices_own_files_is_not_replayed(
    of_a_fleet: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {**of_a_fleet.manifest(), "data_sha256": ["ab" * 32, "cd" * 32, "ef" * 32]}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(told))
    config, out = str(of_a_fleet.config_file), str(tmp_path / "replay")
    assert run(["simulate", config, "--plan", str(manifest), "--out", out]) == 2
    captured = capsys.readouterr().err
    assert "maybe its devices' own files (data_sha256 abababababab, cdcdcdcdcdcd and 1" in captured
    assert captured.count("\n") == 1
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ("[[0, 1], [1]]", "plan.nodes: client 1 is in it twice"),
        ("[[0], []]", "plan.nodes: expected lists of client ids, none of them empty"),
    ],
)
def test_a_block_map_names_every_client_once(nodes: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(DIGITS, "test", overrides=[f"plan.nodes={nodes}"])


def test_a_block_map_of_clients_that_there_are_not_is_refused(
    digits_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert run(["simulate", str(digits_toml), "-s", "plan.nodes=[[0, 77]]", "--out", out]) == 2
    assert "plan.nodes: the data has no client 77" in capsys.readouterr().err


def test_a_config_without_a_block_map_is_the_same_run_as_before() -> None:
    assert "nodes" not in config_of().identity()["plan"]
    assert Plan().nodes is None
