"""Clients measure the model on their own examples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.host import Host
from clients.training import ClientData
from deploy.cli import run
from server.client_evaluation import measure_on_clients
from server.coordinator import RoundResult, StageRun, begin_stage, run_round
from shared_models.errors import RoundError
from shared_models.messages import BlockFailure, BlockRequest, Reply, Send
from shared_models.partial import Partial, Row
from tests.in_memory import opened, send_to

ALL = ("evaluate.clients_fraction=1.0", "plan.dtype=float64")


def trained(host: Host, stage: StageRun) -> RoundResult:
    start = {name: tensor.double() for name, tensor in host.task.build(0).items()}
    return run_round(stage, begin_stage(stage, start), send_to(host), lambda _: None)


def asking(host: Host, failing: int | None = None) -> Send:
    def data_of(client_id: int) -> ClientData:
        if client_id == failing:
            raise OSError("sensor unplugged")
        return host.data_of(client_id)

    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        return (host.evaluator("train")(request, data_of) for request in requests)

    return send


def test_the_mean_over_clients_is_the_mean_over_their_examples() -> None:
    _, host, stage = opened(*ALL)
    result = trained(host, stage)
    told = measure_on_clients(stage, result, asking(host)).result.record.clients_eval
    assert told is not None
    model = host.task.model(0).double()
    x = torch.from_numpy(host.task.input.prepare(np.asarray(host.dataset.train.x))).double()
    y = torch.from_numpy(host.dataset.train.y)
    outputs = host.task.apply(model, result.state.params, x)
    assert told["clients"] == 12
    assert told["loss"] == pytest.approx(float(host.task.loss(outputs, y)))
    assert told["accuracy"] == pytest.approx(float((outputs.argmax(1) == y).double().mean()))
    assert told["accuracy_p10"] <= told["accuracy_p50"] <= told["accuracy_p90"]


def test_a_share_of_the_clients_is_drawn_anew_each_time() -> None:
    _, host, stage = opened("evaluate.clients_fraction=0.3", "plan.dtype=float64")
    result = trained(host, stage)
    rows = measure_on_clients(stage, result, asking(host)).rows
    assert len(rows) == 4  # of 12, rounded up
    later = replace(result, state=replace(result.state, round=2))
    assert {r.client_id for r in rows} != {
        r.client_id for r in measure_on_clients(stage, later, asking(host)).rows
    }


def test_clients_that_cannot_are_named_and_the_others_count() -> None:
    _, host, stage = opened(*ALL)
    measured = measure_on_clients(stage, trained(host, stage), asking(host, failing=5))
    assert measured.result.record.clients_eval is not None
    assert measured.result.record.clients_eval["clients"] == 11
    assert measured.result.record.clients_eval["failed"] == 1
    assert measured.rows[5].reason == "OSError: sensor unplugged"


def test_lies_about_others_are_refused_and_nobody_left_is_an_error() -> None:
    _, host, stage = opened(*ALL)
    result = trained(host, stage)

    def lying(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        for place, request in enumerate(requests):
            partial = host.evaluator("train")(request, host.data_of)
            wrong = (Row(99, 1, {"accuracy": 1.0}), *partial.rows[1:])
            yield replace(partial, rows=wrong) if place == 0 else partial

    measured = measure_on_clients(stage, result, lying)
    assert [row.status for row in measured.rows[:5]] == ["refused"] + ["ok"] * 4
    with pytest.raises(RoundError, match="none of 12 clients could evaluate; client 0: gone"):
        measure_on_clients(stage, result, lambda rs: iter([BlockFailure("gone") for _ in rs]))


def test_a_client_tells_only_what_it_is_asked_for() -> None:
    _, host, stage = opened(*ALL)

    def boasting(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        for request in requests:
            partial = host.evaluator("train")(request, host.data_of)
            first, *others = partial.rows
            boast = replace(first, metrics={**first.metrics, "accuracy_p10": 1.0})
            yield replace(partial, rows=(boast, *others) if first.client_id == 0 else partial.rows)

    measured = measure_on_clients(stage, trained(host, stage), boasting)
    assert [row.client_id for row in measured.rows if row.status == "refused"] == [0]
    assert "which nobody asked for" in measured.rows[0].reason


def test_a_metric_that_one_client_keeps_to_itself_costs_nothing() -> None:
    _, host, stage = opened(*ALL)

    def silent(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        for request in requests:
            first, *others = host.evaluator("train")(request, host.data_of).rows
            told = {"loss": first.metrics["loss"]}
            yield Partial({}, (replace(first, metrics=told), *others))

    measured = measure_on_clients(stage, trained(host, stage), silent)
    told = measured.result.record.clients_eval
    assert told is not None
    assert told["clients"] == 12
    assert 0 <= told["accuracy"] <= 1


def test_a_run_leaves_a_file_per_measured_round(digits_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ["evaluate.clients_fraction=0.5", "evaluate.every=2", "evaluate.data=none"]
    more = [word for setting in settings for word in ("-s", setting)]
    assert run(["simulate", str(digits_toml), "--out", str(out), *more]) == 0
    files = sorted(path.name for path in (out / "client_metrics").iterdir())
    assert files == ["train-000002.json", "train-000004.json"]
    columns = json.loads((out / "client_metrics" / files[0]).read_text())
    assert len(columns["client_id"]) == len(columns["accuracy"]) == 6
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients_eval"] is None for line in lines] == [True, False, True, False]
    assert all(line["eval"] is None for line in lines)
