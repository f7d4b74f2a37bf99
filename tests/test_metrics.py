"""Metrics: what a run's events say of it, what is served, what the dashboard may ask."""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from clients.events import OUTCOMES, Connected, TrainerStarted, Worked
from deploy.events import ArtefactMeasured, Event
from deploy.fleet.home import Running, ServerHome, create_home
from deploy.metrics import catalog, device
from deploy.metrics.endpoint import MetricsAddress, served
from deploy.metrics.exposition import registry_of
from deploy.metrics.rounds import Progress, outcomes, progressed
from deploy.metrics.run import RunMetrics
from deploy.metrics.series import Series
from deploy.metrics.server import ServerMetrics
from server.event_log import Ended, EventLog
from server.events import BlockFinished, Notice, RoundFinished, StageStarted, Waiting
from server.records import Failure, RoundRecord, Seconds
from shared_models.errors import InputError
from shared_models.files import locked
from tests.conftest import ROOT
from tests.promql import asked, queries_of_dashboard, rules_of


def test_the_operator_s_token_goes_to_the_own_superlink_alone(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "server")
    create_home(home, [], 30)
    with socket.create_server(("127.0.0.1", 0)) as strange, socket.create_server(("", 0)) as own:
        host, port = strange.getsockname()
        home.note(Running(1, host, port, insecure=True, superlink_pid=1))  # as a run may write it
        home.lock.touch()
        with locked(home.lock):
            listens = Running(1, "127.0.0.1", own.getsockname()[1])
            own.close()
            ServerMetrics(home, listens, Series()).look()
        strange.settimeout(0.1)
        with pytest.raises(TimeoutError):
            strange.accept()


STARTED = StageStarted("train", rounds=2, done=0, clients=20, clients_per_round=10)
RECORD = RoundRecord(
    stage="train",
    round=1,
    clients_selected=10,
    clients_aggregated=5,
    clients_failed=3,
    failures=(
        Failure(4, "failed", "it crashed"),
        Failure(5, "failed", "it crashed"),
        Failure(6, "refused", "delta: holds NaN"),
        Failure(7, "late", "missed the deadline"),
    ),
    train_loss=1.5,
    eval={"loss": 1.25, "accuracy": 0.5},
    seconds=Seconds(total=3.0, train=2.0, aggregate=1.0, evaluate=0.5, checkpoint=0.25),
    bytes_down=100,
    bytes_up=50,
    rss_mb=2.0,
    time=1000.0,
    clients_eval={"accuracy": 0.4},
    attempts=2,
    clients_late=1,
    clients_discarded=1,
)
ARTEFACT = SimpleNamespace(
    file="model.onnx", size_bytes=9, parity=SimpleNamespace(metric="accuracy", score=0.5)
)
RUN: list[Event | Ended] = [
    Waiting(clients=1, wanted=3, unanswered=0, seconds=9.0),
    STARTED,
    Notice("hello"),
    BlockFinished("train", 1, 4),
    RoundFinished(RECORD),
    ArtefactMeasured(cast("Any", ARTEFACT)),
]


def scraped(series: Series) -> dict[tuple[str, ...], float]:
    """Returns what Prometheus reads: name and label values in the order of their names."""
    return parsed(generate_latest(registry_of(series)).decode())


def parsed(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def told(*events: Event | Ended) -> Series:
    series = Series()
    metrics = RunMetrics(series)
    for event in events:
        metrics("digits-1", event)
    return series


def test_a_round_is_served_as_it_was() -> None:
    found = scraped(told(*RUN))
    about = ("digits-1", "train")
    assert found["wildflower_rounds_total", *about] == 1
    assert found["wildflower_attempts_total", *about] == 2
    assert found["wildflower_phase_seconds_total", "evaluate", *about] == 0.5
    assert found["wildflower_transferred_bytes_total", "down", *about] == 100
    assert found["wildflower_train_loss", *about] == 1.5
    assert found["wildflower_evaluation", "accuracy", "digits-1", "server", "train"] == 0.5
    assert found["wildflower_evaluation", "accuracy", "digits-1", "clients", "train"] == 0.4
    assert found["wildflower_memory_bytes", "digits-1"] == 2 * 2**20


def test_what_is_served_is_what_was_told_and_who_serves_it() -> None:
    address = MetricsAddress()
    with served(address, told(*RUN)) as port, urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        found = parsed(answer.read().decode())
    assert found["wildflower_rounds_total", "digits-1", "train"] == 1
    assert found["wildflower_build_info", platform.python_version(), version("wildflower")] == 1
    assert found[("process_resident_memory_bytes",)] > 0


def test_counters_grow_and_gauges_are_what_is_now() -> None:
    second = replace(RECORD, round=2, train_loss=1.0)
    found = scraped(told(STARTED, RoundFinished(RECORD), RoundFinished(second)))
    about = ("digits-1", "train")
    assert found["wildflower_clients_total", "aggregated", *about] == 10
    assert (found["wildflower_round", *about], found["wildflower_train_loss", *about]) == (2, 1.0)


def test_each_client_has_one_outcome() -> None:
    counted = outcomes(RECORD)
    assert counted == {"aggregated": 5, "failed": 2, "refused": 1, "late": 1, "discarded": 1}
    assert sum(counted.values()) == RECORD.clients_selected


def test_a_run_tells_all_of_its_metrics_and_no_other() -> None:
    metrics = {metric.name for metric in told(*RUN).now()}
    assert metrics == {metric.name for metric in catalog.RUN_METRICS}


def test_a_device_tells_all_of_its_metrics() -> None:
    series, trained = Series(), Worked("train.block", "answered", 2.0, 100, 50)
    with device.watched(MetricsAddress(), hosted=3) as observe:
        for event in (Connected(True), TrainerStarted(1), trained, trained):
            observe(event)
        series = observe.args[0]  # type: ignore[attr-defined]
        found = scraped(series)
    assert set(series.now()) >= set(catalog.CLIENT_METRICS)
    assert found["wildflower_client_messages_total", "answered", "train.block"] == 2
    assert found["wildflower_client_work_seconds_total", "train.block"] == 4
    assert found["wildflower_client_transferred_bytes_total", "up"] == 100
    assert trained.outcome in OUTCOMES


def waited(events: list[Event | Ended]) -> Iterator[int]:
    progress = Progress()
    for event in events:
        progress = progressed(progress, event)
        yield progress.waiting


def test_the_queue_is_whom_the_round_under_way_waits_for() -> None:
    block, round_two = BlockFinished("train", 1, 4), BlockFinished("train", 2, 10)
    over = [RoundFinished(RECORD), RoundFinished(replace(RECORD, round=2))]
    assert list(waited([STARTED, block, block, over[0], round_two, over[1]])) == [
        10, 6, 2, 10, 0, 0,
    ]  # fmt: skip


def test_a_round_that_is_told_late_does_not_count_for_the_next() -> None:
    first, second = BlockFinished("train", 1, 10), BlockFinished("train", 2, 4)
    assert list(waited([STARTED, first, second, RoundFinished(RECORD)])) == [10, 0, 6, 6]


def test_names_follow_prometheus_s_conventions() -> None:
    for metric in catalog.METRICS:
        assert metric.name.startswith("wildflower_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not any(unit in metric.name for unit in ("_mb", "_ms", "_minutes"))
    names = [metric.name for metric in catalog.METRICS]
    assert len(set(names)) == len(names)


def test_an_address_that_is_taken_is_told(refused_port: int) -> None:
    with (
        pytest.raises(InputError, match=f"--metrics-port {refused_port}"),
        served(MetricsAddress(port=refused_port), Series()),
    ):
        pass


@pytest.fixture
def refused_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_run_that_is_forgotten_is_not_served() -> None:
    series = told(*RUN)
    metrics = RunMetrics(series)
    metrics("other", STARTED)
    metrics.forget("digits-1")
    assert {labels[0] for values in series.now().values() for labels in values} == {"other"}


def test_a_document_names_every_metric_as_it_is() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    for metric in catalog.METRICS:
        labels = ", ".join(metric.labels)
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |" in text


def test_logs_are_read_as_they_grow_and_again_from_the_start(tmp_path: Any) -> None:
    from deploy.watching.event_files import EventFiles

    (tmp_path / "run-1").mkdir()
    log = EventLog(tmp_path / "run-1" / "events.jsonl")
    log(STARTED)
    files = EventFiles(tmp_path)
    assert [(t.run, t.event, t.is_new) for t in files.read()] == [("run-1", STARTED, False)]
    log(RoundFinished(RECORD))
    with (tmp_path / "run-1" / "events.jsonl").open("a") as file:
        file.write('{"event": "noti')  # half of a line
    assert [(t.event, t.is_new) for t in files.read()] == [(RoundFinished(RECORD), True)]
    log.end(Ended("failed", "7", "because"))
    assert [t.event for t in files.read()] == [Ended("failed", "7", "because")]
    assert len(list(EventFiles(tmp_path).read())) == 3


BOARD = ROOT / "k8s/components/prometheus/dashboard.json"
RULES = ROOT / "k8s/components/prometheus/rules.yaml"
# What Prometheus itself adds to what it scrapes, and what is served of the process.
SCRAPED = {"job", "instance", "pod"}
OTHERS = {"up": set[str](), "process_resident_memory_bytes": set[str]()}
KNOWN = {metric.name: set(metric.labels) for metric in catalog.METRICS} | OTHERS


def unknown(query: str) -> list[str]:
    """Returns what a query asks for that nobody serves."""
    return [
        f"{found.metric} {sorted(found.labels)}"
        for found in asked(query)
        if found.metric not in KNOWN or not found.labels <= KNOWN[found.metric] | SCRAPED
    ]


@pytest.mark.parametrize(
    "query", queries_of_dashboard(BOARD) + [str(rule["expr"]) for rule in rules_of(RULES)]
)
def test_a_query_asks_for_metrics_that_exist(query: str) -> None:
    assert list(asked(query))
    assert unknown(query) == []


def test_a_query_for_what_is_not_there_is_seen() -> None:
    assert unknown("rate(wildflower_round_total[5m])")
    assert unknown('wildflower_train_loss{phase="train"}')
    assert unknown("sum by (outcome) (wildflower_train_loss)")


def test_the_dashboard_shows_every_metric() -> None:
    shown = {found.metric for query in queries_of_dashboard(BOARD) for found in asked(query)}
    assert shown >= {metric.name for metric in catalog.METRICS} - {
        "wildflower_build_info", "wildflower_notices_total", "wildflower_stage_clients",
        "wildflower_client_trainer_starts_total",
    }  # fmt: skip


def test_an_alert_says_what_to_do() -> None:
    for rule in rules_of(RULES):
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["what_to_do"], rule["alert"]
