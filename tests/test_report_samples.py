"""What is kept to look at: `samples.json` tells the truth about the final model."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.host import open_host
from deploy.cli import run
from deploy.report.partition import skew_of
from server.run_folder import RunFolder
from server.sample_records import Samples, picture
from server.samples import sampled
from shared_models.arrays import load_arrays
from shared_models.config import parse_config
from shared_models.datasets.load import load_dataset
from shared_models.stage_task import final_task

CONFIG = """
task = "{task}"
[data]
clients = 4
[[stages]]
kind = "train"
rounds = 1
clients_per_round = 2
local_learning_rate = 0.1
{more}
"""


def samples_of(task: str, more: str = "") -> Samples | None:
    config = parse_config(CONFIG.format(task=task, more=more), "test")
    ready = final_task(config)
    return sampled(config, ready, ready.build(0))


def test_a_run_keeps_what_its_model_mixes_up(digits_toml: Path, tmp_path: Path) -> None:
    assert run(["simulate", str(digits_toml), "--out", str(tmp_path / "run")]) == 0
    folder = RunFolder(tmp_path / "run")
    told = json.loads((folder.path / "samples.json").read_text())
    counts = np.array(told["confusion"])
    accuracy = folder.records()[-1].eval or {}
    assert counts.sum() == told["examples"] == 359
    assert counts.trace() / counts.sum() == pytest.approx(accuracy["accuracy"])
    assert all(one["truth"] != one["said"] for one in told["wrong"])
    assert [one["sure"] for one in told["wrong"]] == sorted(
        (one["sure"] for one in told["wrong"]), reverse=True
    )
    config = folder.config()
    again = sampled(config, final_task(config), load_arrays(folder.model_file))
    assert again is not None
    assert [list(row) for row in again.confusion] == told["confusion"]
    owned = json.loads((folder.path / "partition.json").read_text())
    assert np.sum(owned["counts"]) == folder.manifest()["population"]["examples"] == 1438
    assert (owned["of"], owned["clients"]) == (12, list(range(12)))
    assert "<title>run" in (folder.path / "report.html").read_text()


def test_a_picture_is_the_example() -> None:
    samples = samples_of("digits-cnn")
    assert samples is not None
    shown = samples.shown[0].picture
    assert shown is not None
    pixels = np.frombuffer(base64.b64decode(shown.pixels), np.uint8)
    test = load_dataset("digits").test
    assert test is not None
    raw = np.asarray(test.x[np.array([0])]).reshape(-1)
    assert np.abs(pixels - raw / 16 * 255).max() <= 0.5
    assert (shown.height, shown.width, shown.channels) == (8, 8, 1)


def test_colours_stay_with_their_pixel() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert list(base64.b64decode(picture(image).pixels)) == list(range(12))


def test_nothing_is_told_of_a_model_that_the_server_does_not_have() -> None:
    assert samples_of("digits-cnn", more='personal = ["head."]\n') is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "has"),
    [
        ("mnist-unet", ("picture", "truth_picture", "made")),
        ("mnist-gan", ("made",)),
        ("mnist-autoencoder", ("picture", "made")),
        ("motes-autoencoder", ("series", "series_made")),
        ("watch-cnn", ("series",)),
        ("trees-detector", ("picture", "truth_boxes")),
        ("shakespeare-lstm", ("text",)),
    ],
)
def test_every_answer_can_be_shown(task: str, has: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    samples = samples_of(task)
    assert samples is not None
    assert json.loads(json.dumps(asdict(samples)))["answer"] == samples.answer
    for name in has:
        assert any(getattr(one, name) for one in samples.shown), name
    assert bool(samples.written) == (task == "shakespeare-lstm")


def test_labels_are_counted_of_clients_spread_over_all_with_the_names_of_natural_ones() -> None:
    natural = parse_config(
        CONFIG.format(task="watch-cnn", more="").replace("clients = 4", 'partition = "natural"'),
        "test",
    )
    host = open_host(natural)
    skew = skew_of(host)
    assert skew.names == host.dataset.client_names
    places = host.partition.indices(skew.clients[3])
    own = np.bincount(host.dataset.train.y[places], minlength=len(skew.labels))
    assert skew.counts[3] == tuple(own.tolist())
    many = parse_config(
        CONFIG.format(task="digits-cnn", more="").replace("clients = 4", "clients = 500"), "test"
    )
    skew = skew_of(open_host(many))
    assert (len(skew.clients), skew.clients[0], skew.clients[-1], skew.of) == (100, 0, 499, 500)
    assert (skew.names, skew.sizes[:2]) == ((), (2.0, 3.0))
