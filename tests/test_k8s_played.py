"""The images as they ship and the manifests as they are rendered, in a real run by podman.

    WILDFLOWER_IMAGE_OPTIONS="--build-arg BASE=..." pytest tests/test_k8s_played.py -m slow -rs

Where podman cannot run as root, or the base image is not to be had, it is skipped, and says why.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.k8s.keys import create_keys, make_keys
from deploy.k8s.names import gateways
from deploy.k8s.render import Rendering, render
from tests.conftest import ROOT
from tests.k8s_player import Player, podman, wait_until
from tests.k8s_rules import Doc
from tests.test_k8s import parsed

pytestmark = pytest.mark.slow

SERVER, SUBMIT = "StatefulSet/wildflower-server", "Job/wildflower-submit"
CLIENTS = ("Deployment/wildflower-client-gateway-0", "Deployment/wildflower-client-gateway-1")
ROUNDS = 12


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """Builds the images from the Dockerfile that ships."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    if os.geteuid() != 0:
        pytest.skip("the pods' users and groups need root's podman")
    probe = subprocess.run(["podman", "info"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"podman does not run here: {probe.stderr.strip()[-300:]}")
    options = os.environ.get("WILDFLOWER_IMAGE_OPTIONS", "")
    names = ("server", "client")
    for name in names:
        command = ["make", f"image-{name}", "ENGINE=podman", f"IMAGE_OPTIONS={options}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode and "BASE=" not in options:
            pytest.skip(
                f"no base image; name one in WILDFLOWER_IMAGE_OPTIONS: {done.stderr[-300:]}"
            )
        assert done.returncode == 0, done.stderr[-3000:]
    return {f"wildflower-{name}": f"localhost/wildflower-{name}:0.1.0" for name in names}


@pytest.fixture
def player(images: dict[str, str], tmp_path: Path) -> Iterator[Player]:
    own = tuple(gateways(2, []))
    rendering = Rendering("laptop", ("submit",), own, images=images)
    docs = parsed(render(rendering))
    create_keys(tmp_path / "keys", "wildflower", [])
    docs += parsed(make_keys(tmp_path / "keys", "wildflower", [], own, renew=False))
    found = Player(longer(docs), tmp_path, f"wf-{secrets.token_hex(3)}")
    yield found
    found.close()


def longer(docs: list[Doc]) -> list[Doc]:
    """Gives the sample's run enough rounds to be killed in."""
    run = next(d for d in docs if d["metadata"]["name"] == "wildflower-run")
    run["data"]["run.toml"] = run["data"]["run.toml"].replace("rounds = 5", f"rounds = {ROUNDS}")
    return docs


def records(player: Player) -> list[dict[str, Any]]:
    runs = player.claim("wildflower-server") / "server/runs"
    lines = [line for p in runs.glob("*/metrics.jsonl") for line in p.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_a_cluster_trains_though_its_pods_are_killed(player: Player) -> None:
    player.start(SUBMIT)  # before there is a server: a cluster starts all at once
    for owner in (SERVER, *CLIENTS):
        player.start(owner)
    try:
        wait_until(lambda: all(player.is_ready(o) for o in (SERVER, *CLIENTS)), 180, "ready")
        wait_until(lambda: len(records(player)) >= 2, 120, "two rounds")
        player.kill(CLIENTS[1])
        player.start(CLIENTS[1])
        wait_until(lambda: len(records(player)) >= 4, 240, "rounds without a gateway")
        player.kill(SERVER)
        player.kill(SUBMIT)
        player.start(SUBMIT)
        player.start(SERVER)
        wait_until(lambda: player.code(SUBMIT) is not None, 480, "the end of the run")
    finally:
        for owner in (SERVER, SUBMIT, *CLIENTS):
            print(owner, player.logs(owner), sep="\n")
    assert player.code(SUBMIT) == 0
    assert [record["round"] for record in records(player)] == list(range(1, ROUNDS + 1))
    assert records(player)[-1]["train_loss"] < 0.5
    home = player.claim("wildflower-runs") / "demo"
    assert json.loads((home / "summary.json").read_text())["status"] == "done"
    assert (home / "model.safetensors").is_file()
    states = {owner: player.stop(owner) for owner in (SERVER, *CLIENTS)}
    assert states[SERVER] == {"superlink": 0, "executor": 0}
    assert [states[owner] for owner in CLIENTS] == [{"client": 0}] * 2


def test_images_are_what_they_say(images: dict[str, str]) -> None:
    for name, image in images.items():
        (told,) = json.loads(podman("image", "inspect", image))
        assert told["Config"]["User"] == "10001:10001"
        assert told["Config"]["Entrypoint"] == ["wildflower"]
        labels = told["Config"]["Labels"]
        assert labels["org.opencontainers.image.title"] == name
        assert labels["org.opencontainers.image.version"] == "0.1.0"
        assert not [v for v in told["Config"]["Env"] if v.startswith("PIP_")]
        history = podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
        assert "PIP_CERT=/" not in history
