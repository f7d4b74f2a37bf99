"""Who watches a run: each tells what happened, and fails alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run
from deploy.events import Event
from deploy.watching.json_lines import JsonLines
from deploy.watching.sinks import AboutRun, Behind, Fan, Guarded
from deploy.watching.spans import Spans, is_asked_for, timeline
from deploy.watching.watch import Watching, opened, trackers
from server.events import Notice, RoundFinished
from shared_models.errors import InputError
from tests.bare_fleet import free_port
from tests.conftest import ROOT
from tests.test_fleet_client import wait_for
from tests.test_metrics import RECORD, RUN, STARTED
from tests.test_metrics_fleet import served_at

CONFIG = 'name = "digits"\nseed = 0\n\n[[stages]]\nname = "train"\nrounds = 2\n'


class Broken:
    """A sink that fails."""

    def __call__(self, _run: str, _event: object, /) -> None:
        raise OSError("no such collector")

    def close(self, _reason: str | None, /) -> None:
        raise OSError("nor now")


def test_a_watcher_that_fails_is_told_of_once_and_left_out() -> None:
    seen: list[Event] = []
    tell = Fan(seen.append, "digits-1", [Guarded("the tracker", Broken, seen.append)])
    for event in (STARTED, RoundFinished(RECORD), RoundFinished(RECORD)):
        tell(event)
    notices = [event.text for event in seen if isinstance(event, Notice)]
    assert notices == ["the tracker is left out from here on: OSError: no such collector"]
    assert len(seen) == 4


def test_one_that_cannot_be_opened_or_closed_fails_alone_too() -> None:
    said: list[Any] = []

    def missing() -> Broken:
        raise ModuleNotFoundError("tensorboard")

    unopened = Guarded("one", missing, said.append)
    unopened("digits-1", STARTED)
    unopened.close(None)
    assert "ModuleNotFoundError" in said[0].text


class Slow:
    """A sink that waits until it may go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.seen: list[object] = []

    def __call__(self, _run: str, event: object, /) -> None:
        assert self.may_go_on.wait(10)
        self.seen.append(event)

    def close(self, _reason: str | None, /) -> None:
        self.seen.append("closed")


def test_nobody_waits_for_a_slow_tracker_until_the_end_and_then_not_for_ever() -> None:
    said: list[Any] = []
    slow = Slow()
    tracker = Behind(Guarded("the tracker", lambda: slow, said.append), said.append, 0.05)
    tracker("digits-1", STARTED)
    tracker("digits-1", RoundFinished(RECORD))
    assert slow.seen == []
    tracker.close(None)
    assert "does not keep up" in said[0].text
    slow.may_go_on.set()
    tracker.close(None)
    assert slow.seen == [STARTED, RoundFinished(RECORD), "closed"]


def test_a_log_has_run_round_and_client_on_each_line() -> None:
    file = io.StringIO()
    for event in (STARTED, RoundFinished(RECORD)):
        JsonLines(file)("digits-1", event)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [
        "stage_started", "round_finished", *4 * ["client_lost"],
    ]  # fmt: skip
    assert {line["run"] for line in lines} == {"digits-1"}
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    lost = lines[4]
    assert (lost["round"], lost["client_id"], lost["status"]) == (1, 6, "refused")


def test_the_phases_of_a_round_follow_each_other() -> None:
    phases = list(timeline(RECORD))
    assert [phase.name for phase in phases] == ["train", "aggregate", "evaluate", "checkpoint"]
    assert all(a.ended == b.began for a, b in pairwise(phases))
    assert phases[1].ended == RECORD.time


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        yield got
        server.shutdown()


def test_a_collector_gets_a_span_for_a_round_and_each_of_its_phases(
    collector: list[bytes],
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = Spans()
    spans("digits-1", RoundFinished(RECORD))
    spans.close(None)
    found = ExportTraceServiceRequest.FromString(collector[0]).resource_spans[0]
    told = {span.name: span for span in found.scope_spans[0].spans}
    assert told.keys() == {"round", "train", "aggregate", "evaluate", "checkpoint"}
    assert {told["train"].parent_span_id} == {told["round"].span_id}
    assert told["train"].end_time_unix_nano - told["train"].start_time_unix_nano == 2 * 10**9
    assert "wildflower.round" in {attribute.key for attribute in told["round"].attributes}


def test_traces_are_sent_only_where_the_standard_variables_say_so() -> None:
    assert not is_asked_for({})
    assert is_asked_for({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
    endpoint = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318"}
    assert not is_asked_for({**endpoint, "OTEL_SDK_DISABLED": "true"})


def test_a_tracker_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="there are tensorboard, mlflow"):
        trackers(["wandb"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # of MLflow's
def test_mlflow_keeps_rounds_and_goes_on_with_a_run_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from mlflow import MlflowClient

    about = AboutRun("digits-1", tmp_path / "digits-1", CONFIG)
    said: list[Any] = []
    for _ in range(2):
        with opened(Watching(("mlflow",))) as watch, watch.over(said.append, about) as observe:
            observe(STARTED)
            observe(RoundFinished(RECORD))
    assert not [event for event in said if isinstance(event, Notice)]
    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'wildflower'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["train/eval/accuracy"] == 0.5
    assert found.data.params["stages.train.rounds"] == "2"


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    about = AboutRun("digits-1", tmp_path, CONFIG)
    said: list[Any] = []
    with opened(Watching(("tensorboard",))) as watch, watch.over(said.append, about) as observe:
        for event in RUN[1:5]:
            observe(event)  # type: ignore[arg-type]
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = found.Scalars("train/train_loss")
    assert (scalar.step, scalar.value) == (1, 1.5)


@pytest.mark.slow
def test_nothing_of_it_is_imported_unless_it_is_asked_for(digits_toml: Path) -> None:
    code = (
        "import sys; from deploy.cli import run;"
        f"assert run(['simulate', {str(digits_toml)!r}, '-s', 'stages.train.rounds=1']) == 0;"
        "names = {'prometheus_client', 'tensorboard', 'mlflow', 'opentelemetry.sdk.trace'};"
        "print(sorted(names & set(sys.modules)))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=digits_toml.parent, env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_progress_is_told_as_json_beside_the_result(
    digits_toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits_toml.parent)
    assert run(["simulate", str(digits_toml), "--log-format", "json", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "done"
    rounds = [line for line in map(json.loads, err.splitlines()) if "round" in line]
    assert {line["run"] for line in rounds} == {"digits-1"}
    assert [line["round"] for line in rounds if line["event"] == "round_finished"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_simulation_is_scraped_while_it_runs_and_ends_cleanly(digits_toml: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "deploy", "simulate", str(digits_toml)]
    options = ["-s", "stages.train.rounds=5000", "--metrics-port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, *options], cwd=digits_toml.parent, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        try:
            name = ("wildflower_rounds_total", "digits-1", "train")
            wait_for(lambda: served_at(port).get(name, 0) >= 2, 60)
        finally:
            process.terminate()
        assert process.wait(30) == 130
