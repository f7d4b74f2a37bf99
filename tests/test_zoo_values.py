"""Tasks whose answer is no class: targets, metrics of a whole set, parity, and real data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients.evaluation import block_evaluator
from clients.training import ClientData
from deploy.cli import run
from deploy.edge.answers import SCORINGS, explained_variance, mean_iou
from deploy.edge.artefact import load_artefact
from deploy.edge.card import read_card
from deploy.edge.predict import evaluate, segment
from server.best import better, measure
from server.client_evaluation import summarize_rows
from server.evaluation import make_evaluator
from server.records import Best
from shared_models.datasets.dataset import Split
from shared_models.inputs import InputSpec
from shared_models.measures import ANOMALY_AUC, EXPLAINED, MEAN_IOU, Pooled, roc_auc
from shared_models.noise import Gaussian, noise_of
from shared_models.objectives import Batch
from shared_models.objectives.vae import negative_bound
from shared_models.partial import Row
from shared_models.tasks import load_task
from tests.conftest import ROOT
from tests.learning import learnt, overrides
from tests.test_best import record_of
from tests.test_trainers import request_for, training_of
from tests.verbs import told

RNG = np.random.default_rng(0)


def in_batches(metric: Pooled, outputs: Tensor, targets: Tensor, y: Tensor, size: int) -> float:
    """Returns a metric whose rows come batch by batch."""
    parts = zip(*(torch.split(own, size) for own in (outputs, targets, y)), strict=True)
    return metric.value(torch.cat([metric.rows(*part) for part in parts]).numpy())


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_pooled_metric_is_that_of_the_whole_set_whatever_the_batches(size: int) -> None:
    outputs, targets = (torch.from_numpy(RNG.normal(size=(50, 3, 4))) for _ in "ab")
    y = torch.from_numpy(RNG.integers(0, 2, 50))
    expected = explained_variance(outputs.numpy(), targets.numpy())
    assert in_batches(EXPLAINED, outputs, targets, y, size) == pytest.approx(expected, rel=1e-9)
    whole = roc_auc(ANOMALY_AUC.rows(outputs, targets, y).numpy())
    assert in_batches(ANOMALY_AUC, outputs, targets, y, size) == whole
    masks = torch.from_numpy(RNG.integers(0, 3, (50, 4, 4)))
    scores = torch.from_numpy(RNG.normal(size=(50, 3, 4, 4)))
    expected = mean_iou(scores.numpy(), masks.numpy())
    assert in_batches(MEAN_IOU, scores, masks, y, size) == pytest.approx(expected, rel=1e-9)


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    scores, labels = RNG.integers(0, 5, 40).astype(float), RNG.integers(0, 2, 40)
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
    assert roc_auc(np.stack([scores, labels], axis=1)) == pytest.approx(np.mean(pairs))
    some = np.append(labels, [-1] * 20)  # who has no label is neither usual nor unusual
    assert roc_auc(np.stack([np.append(scores, RNG.random(20)), some], 1)) == roc_auc(
        np.stack([scores, labels], 1)
    )
    assert math.isnan(roc_auc(np.array([[0.1, 0.0], [0.2, 0.0]])))


def test_the_mean_explains_nothing_and_the_truth_all() -> None:
    truth = RNG.normal(size=(20, 5)).astype(np.float32)
    assert explained_variance(np.broadcast_to(truth.mean(axis=0), truth.shape), truth) < 1e-6
    assert explained_variance(truth, truth) == 1.0
    assert math.isnan(EXPLAINED.value(EXPLAINED.rows(*[torch.ones(4, 2)] * 3).numpy()))


def test_outputs_that_are_off_by_much_do_not_agree() -> None:
    truth = RNG.normal(size=(100, 30)).astype(np.float32)
    agreement = SCORINGS["values"].agreement
    assert agreement(truth + np.float32(0.1), truth) == 1.0
    assert agreement(truth + np.float32(0.5), truth) == 0.0
    mixed = np.where(np.arange(100)[:, None] < 30, truth + np.float32(0.5), truth)
    assert agreement(mixed, truth) == 0.7


def test_server_and_clients_measure_the_same_and_leave_out_what_is_not_defined() -> None:
    task = load_task("motes-autoencoder")
    x = RNG.normal(size=(30, 20, 2)).astype(np.float32)
    y, params = RNG.integers(0, 2, 30), task.build(0)
    told = make_evaluator(task, Split(x, y), torch.device("cpu"), 7)(params)
    assert list(told) == ["loss", "roc_auc", "explained_variance"]
    assert set(told) == set(task.measures())
    training = training_of(task, dtype=torch.float32)
    sets = {0: ClientData(task.input.prepare(x), y), 1: ClientData(x, np.zeros(30, np.int64))}
    request = replace(request_for(task, params), client_ids=(0, 1))
    one, other = block_evaluator(training, 11)(request, sets.__getitem__).rows
    assert one.metrics == pytest.approx(told, rel=1e-5)
    assert set(other.metrics) == {"loss", "explained_variance"}
    assert summarize_rows([one, other])["roc_auc"] == one.metrics["roc_auc"]


def test_of_a_cost_less_is_better() -> None:
    told = {"loss": 1.0, "error": 0.5}
    assert measure(record_of(2, eval=told)) == Best(2, "error", 0.5)
    first, second = Best(1, "error", 0.5), Best(2, "error", 0.4)
    assert better(first, second, {"error"}) == second
    assert better(first, second) == first
    rows = [Row(k, 10, {"error": k / 10}) for k in range(11)]
    assert summarize_rows(rows, {"error"})["error_worst10"] == pytest.approx(0.95)


def test_the_bound_is_that_of_the_paper_and_its_noise_an_argument() -> None:
    model = load_task("mnist-vae").model(0).double()
    x = torch.from_numpy(RNG.random((3, 1, 28, 28)))
    noise = noise_of(model)(np.random.default_rng(0), Batch(x, torch.zeros(3)))
    assert noise["latent.drawn"].shape == (3, 16)
    logits, mean, spread = torch.func.functional_call(model.train(), noise, (x,))
    chance = logits.sigmoid()
    likelihood = (x * chance.log() + (1 - x) * (1 - chance).log()).sum()
    ours = torch.distributions.Normal(mean, (spread / 2).exp())
    apart = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(
        negative_bound((logits, mean, spread), x), (apart - likelihood) / x.numel()
    )
    drawn = Gaussian((16,)).train()
    drawn.drawn = noise["latent.drawn"]
    expected = mean + (spread / 2).exp() * noise["latent.drawn"]
    torch.testing.assert_close(drawn(mean, spread), expected)
    assert torch.equal(model.eval()(x), torch.func.functional_call(model, noise, (x,)))


class Halves(nn.Module):
    """A mask of two classes: what is bright and what is not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x, x - 0.5], dim=1)


def test_masks_and_values_are_told_on_a_device() -> None:
    from deploy.edge.card import Card

    x = RNG.random((3, 1, 4, 4)).astype(np.float32)
    card = Card(("dark", "bright"), InputSpec((1, 4, 4)), "mask")
    masks = segment(lambda v: Halves()(torch.from_numpy(v)).numpy(), card, x)
    assert masks[1].pixels == (x[1, 0] > 0.5).astype(int).tolist()
    assert masks[1].shares["bright"] == pytest.approx((x[1] > 0.5).mean())
    values = evaluate(lambda v: v + np.float32(0.5), replace(card, answer="values"), x)
    assert values[0].error == pytest.approx(0.25)
    assert evaluate(lambda v: v[:, 0, 0], replace(card, answer="values"), x)[0].error is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist-autoencoder", "mnist-vae", "watch-autoencoder"])
def test_a_few_rounds_make_it_better(name: str, tmp_path: Path) -> None:
    plan = ("engine=inline", "plan.trainer=loop", "plan.block_size=4")
    settings = overrides("train", 6, *plan)
    before, after = learnt(name, tmp_path / "run", settings)
    assert after["loss"] < before["loss"]
    assert after["explained_variance"] > max(0.0, before["explained_variance"])


@pytest.fixture(scope="module")
def motes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the example, with its files."""
    out = tmp_path_factory.mktemp("motes") / "run"
    example = str(ROOT / "examples" / "motes-anomalies.toml")
    fewer = ["-s", "stages.export.latency_runs=5", "-s", "plan.trainer=reused"]
    assert run(["simulate", example, "--out", str(out), *fewer]) == 0
    return out


def test_motes_learn_what_is_usual(motes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (motes / "metrics.jsonl").read_text().splitlines()]
    first, last = (line["eval"] for line in (lines[0], lines[-1]))
    assert first["roc_auc"] < 0.9
    assert last["roc_auc"] > 0.98
    assert last["loss"] < 0.1 * first["loss"]
    for path in sorted((motes / "export").glob("model-*[ex]")):
        artefact = load_artefact(path)
        assert artefact.answer == read_card(path).answer == "values"
        assert artefact.parity.metric == "explained_variance"
        assert artefact.parity.agreement > 0.95
        assert told(capsys, "verify", str(path))["passed"]


def test_what_is_unusual_has_a_large_error_on_the_device(
    motes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, x = motes / "export" / "model-dynamic.tflite", np.full((2, 20, 2), (44.0, 29.0))
    x[1, 5:15] = (80.0, 50.0)
    np.save(tmp_path / "x.npy", x)
    usual, unusual = told(capsys, "predict", str(model), "--input", str(tmp_path / "x.npy"))
    assert unusual["error"] > 100 * usual["error"]
    assert run(["predict", str(model), "--input", str(tmp_path / "x.npy")]) == 0
    assert "error against the input" in capsys.readouterr().out
    assert (
        run(["export", str(motes), "--format", "tflite", "--quantize", "dynamic", "--bundle"]) == 0
    )
    assert run(["verify", str(model.with_name("model-dynamic-tflite.zip"))]) == 0
    assert run(["compare", str(motes)]) == 0


def test_activations_that_are_cut_off_are_caught(
    motes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full int8 has ranges of usual readings alone: the gate says so."""
    assert run(["export", str(motes), "--format", "onnx", "--quantize", "int8"]) == 1
    assert "explained_variance fell from" in capsys.readouterr().err
