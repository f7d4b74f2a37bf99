"""The server's device changes where the server works, not what comes out."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import Tensor

from deploy.simulate import check
from server import evaluation
from server.aggregators import Aggregator
from server.aggregators.placed import placed_on
from server.coordinator import begin_stage, make_requests, run_round, stepped
from server.device import HOST, on_device
from server.evaluation import evaluation_split, evaluator_of, make_evaluator
from server.fold import Fold, fold_reply
from server.parts import aggregator_of
from shared_models.arrays import Arrays, in_dtype
from shared_models.config import Config, parse_config, to_toml
from shared_models.config.parts import AggregatorName
from shared_models.datasets.dataset import Split
from shared_models.errors import ConfigError, InputError
from shared_models.partial import Partial, Row, Sum
from shared_models.task import Task
from shared_models.tasks import load_task
from tests.conftest import DIGITS
from tests.in_memory import config_of, opened, send_to

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")
DEVICES = [HOST, pytest.param(torch.device("cuda"), marks=needs_cuda)]
META = torch.device("meta")
AGGREGATORS = get_args(AggregatorName)
NEEDS = {
    "clipped_mean": ["stages.train.clip_norm=1.0"],
    "trimmed_mean": ["stages.train.trim_fraction=0.2"],
    "krum": ["stages.train.byzantine_fraction=0.2"],
    "multi_krum": ["stages.train.byzantine_fraction=0.2"],
}


def ignore(_: object) -> None:
    """An observer that looks away."""


def aggregator(name: str) -> Aggregator:
    overrides = [f"stages.train.aggregator={name}", *NEEDS.get(name, [])]
    return aggregator_of(config_of(*overrides).stage("train"))


def partials() -> list[Partial]:
    """Returns three blocks of three clients."""
    rng = np.random.default_rng(0)
    made = []
    for block in range(3):
        rows = tuple(Row(3 * block + k, 10 + k) for k in range(3))
        own = torch.tensor(rng.normal(size=(3, 50, 4)), dtype=torch.float32)
        shares = torch.tensor([row.examples for row in rows])[:, None, None]
        sums = {"delta": Sum({"w": (own * shares).sum(0)}, 33.0), "stats": Sum({}, 33.0)}
        made.append(Partial(sums, rows, {"delta": {"w": own}, "stats": {}}))
    return made


def folded(rule: Aggregator) -> Arrays:
    return dict(rule.finish(functools.reduce(rule.add, partials(), rule.init()))["delta"])


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_fold_on_a_device_is_the_fold(name: str, device: torch.device) -> None:
    plain, placed = folded(aggregator(name)), folded(placed_on(device, aggregator(name)))
    assert placed["w"].device.type == device.type
    tolerance = 0.0 if device == HOST else 1e-12  # on the host it is bit-equal
    torch.testing.assert_close(placed["w"].to(HOST), plain["w"], rtol=tolerance, atol=tolerance)
    again = folded(placed_on(device, aggregator(name)))
    assert placed["w"].equal(again["w"])


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adagrad", "yogi"])
@pytest.mark.parametrize("objective", ["fedavg", "scaffold"])
def test_all_that_a_round_steps_is_on_the_device(objective: str, optimizer: str) -> None:
    # Meta tensors have a device and no values: one that stayed behind cannot be added to them.
    _, host, run = opened(
        f"stages.train.objective={objective}", f"stages.train.server_optimizer={optimizer}"
    )
    rule = placed_on(META, aggregator_of(run.stage))
    run = replace(run, parts=replace(run.parts, aggregator=rule))
    state = begin_stage(run, host.task.build(0))
    requests = make_requests(run, state, ("train", 1, 0), run.population.client_ids)
    fold = Fold(rule.init())
    for request, reply in zip(requests, send_to(host)(requests), strict=True):
        fold = fold_reply(rule, fold, request, reply)
    after = stepped(run, on_device(state, META), fold)
    nests = (after.params, *after.optimizer.values(), *after.extras.values())
    assert {tensor.device for nest in nests for tensor in nest.values()} == {META}


@needs_cuda
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_rounds_on_a_gpu_are_the_rounds_and_clients_are_sent_what_is_on_the_host(
    optimizer: str,
) -> None:
    found = []
    for device in ("cpu", "cuda"):
        _, host, run = opened(
            f"server_device={device}", f"stages.train.server_optimizer={optimizer}"
        )
        state = begin_stage(run, host.task.build(0))
        for _ in range(2):
            state = run_round(run, state, send_to(host), ignore).state
        assert {tensor.device for tensor in state.params.values()} == {HOST}
        found.append(state.params)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("key", ["server_device", "evaluate.device"])
def test_a_gpu_that_is_not_there_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_cuda(monkeypatch)
    config = config_of(f"{key}=cuda")
    with pytest.raises(InputError, match=f"^{key}: 'cuda' is not available on this machine; use"):
        check(config, Path("runs"))


def test_the_server_app_refuses_it_before_it_writes_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from server.app import make_app

    without_cuda(monkeypatch)
    run_config = {"config": to_toml(config_of("server_device=cuda")), "out": f"{tmp_path}/run"}
    context = Context(1, 0, {}, RecordDict(), run_config)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="server_device"):
        make_app(ignore)(None, context)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_device_and_the_precision_are_part_of_what_a_run_is() -> None:
    for override in ("server_device=cuda", "evaluate.autocast=bfloat16"):
        assert config_of(override).identity() != config_of().identity()
    assert config_of().server_device == "cpu"
    with pytest.raises(ConfigError, match=r"evaluate\.autocast: 'bfloat16' contradicts plan\.dtyp"):
        parse_config(DIGITS, "x", overrides=["evaluate.autocast=bfloat16", "plan.dtype=float64"])


def digits() -> tuple[Config, Task, Split]:
    config = config_of()
    task = load_task(config.task)
    split = evaluation_split(config, task)
    assert split is not None
    return config, task, split


def plainly(task: Task, split: Split, params: Arrays, size: int) -> dict[str, float]:
    """Evaluates batch by batch, one number after another."""
    loss = hits = 0.0
    for start in range(0, len(split), size):
        index = np.arange(start, min(start + size, len(split)))
        x = torch.tensor(task.input.prepare(split.x[index])).to(memory_format=torch.channels_last)
        y = torch.tensor(split.y[index])
        weights = {
            name: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t
            for name, t in params.items()
        }
        with torch.inference_mode():
            outputs = task.apply(task.model().eval(), weights, x)
            loss += float(task.loss(outputs, y)) * len(y)
            hits += float((outputs.argmax(1) == y).sum())
    return {"loss": loss / len(split), "accuracy": hits / len(split)}


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "streamed"])
def test_evaluation_is_the_plain_evaluation(
    kept: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(evaluation, "_KEPT_BYTES", {"cpu": 0, "cuda": 0})
    _, task, split = digits()
    params = task.build(0)
    evaluate = make_evaluator(task, split, device, 100)
    plain, found = plainly(task, split, params, 100), evaluate(params)
    assert found == (plain if device == HOST else pytest.approx(plain, rel=1e-3))
    assert evaluate(params) == found


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_autocast_lowers_the_model_and_nothing_else(device: torch.device) -> None:
    _, host, run = opened()
    state = begin_stage(run, host.task.build(0))
    for _ in range(4):
        state = run_round(run, state, send_to(host), ignore).state
    seen: set[torch.dtype] = set()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add(outputs.dtype)
        return host.task.loss(outputs, targets)

    _, _, split = digits()
    task = replace(host.task, loss=loss)
    whole = make_evaluator(task, split, device, 100)(state.params)
    lower = make_evaluator(task, split, device, 100, torch.bfloat16)(state.params)
    assert seen == {torch.float32}
    assert lower["loss"] != whole["loss"]
    assert lower["loss"] == pytest.approx(whole["loss"], rel=0.02)
    assert lower["accuracy"] == pytest.approx(whole["accuracy"], abs=0.01)


def test_the_config_says_how_the_server_evaluates() -> None:
    _, task, split = digits()
    params = task.build(0)
    for name, dtype in (("none", None), ("bfloat16", torch.bfloat16)):
        asked = config_of(f"evaluate.autocast={name}", "evaluate.device=cpu")
        evaluate = evaluator_of(asked, task)
        assert evaluate is not None
        assert evaluate(params) == make_evaluator(task, split, HOST, 100, dtype)(params)
    assert evaluator_of(config_of("evaluate.data=none"), task) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fold_leaves_partials_as_they_are(dtype: torch.dtype) -> None:
    for name in AGGREGATORS:
        blocks = [replace(p, sums=in_dtype_of(p, dtype)) for p in partials()]
        before = [p.sums["delta"].arrays["w"].clone() for p in blocks]
        rule = aggregator(name)
        rule.finish(functools.reduce(rule.add, blocks, rule.init()))
        assert all(
            p.sums["delta"].arrays["w"].equal(b) for p, b in zip(blocks, before, strict=True)
        )


def in_dtype_of(partial: Partial, dtype: torch.dtype) -> dict[str, Sum]:
    return {n: Sum(in_dtype(own.arrays, dtype), own.weight) for n, own in partial.sums.items()}
