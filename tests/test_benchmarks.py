"""The benchmark harness: systems do the same work, memory counts children, ratios are right."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from benchmarks import server
from benchmarks.compare import report, turns
from benchmarks.job import read_clients, read_job
from benchmarks.memory import Crowd, told
from benchmarks.plot import draw, save, speeds
from benchmarks.process_tree import pss_mb, watch
from benchmarks.simulation import Result, measure
from benchmarks.summary import detail_table, medians, ratios, speed_table
from benchmarks.systems import Asked, find_system, prepare, wildflower_config
from benchmarks.text import three_figures
from benchmarks.workloads import TINY, WORKLOADS, cohorts_of, find_workload, shuffled
from clients.host import open_host
from shared_models.arrays import load_arrays
from shared_models.datasets.dataset import Dataset, Split
from shared_models.errors import InputError, WildflowerError

# Takes memory in a child, says so, and waits.
PARENT = """
import subprocess, sys
child = "x = bytearray(range(256)) * 400_000; print(len(x), flush=True); input()"
subprocess.run([sys.executable, "-c", child])
"""
RUN = Result(
    workload="W1",
    system="floor",
    rounds=3,
    clients=1000,
    cohort=1000,
    startup_s=1.0,
    seconds_per_round=2.0,
    clients_per_second=500.0,
    round_seconds=(2.0, 2.0),
    peak_pss_mb=400,
    accuracy=0.9,
    loss=0.3,
    versions={},
    settings={},
    machine={"cpu": "a cpu", "cores": 2},
    date="2026-01-01",
)


def measured(system: str, *seconds: float, workload: str = "W1") -> list[Result]:
    return [
        replace(RUN, system=system, workload=workload, seconds_per_round=own) for own in seconds
    ]


def test_floor_and_wildflower_do_the_same_work() -> None:
    asked = Asked(TINY, rounds=10)
    floor, ours = measure("floor", asked), measure("wildflower-inline", asked)
    # They differ in the order of a client's examples only.
    assert floor.accuracy == pytest.approx(ours.accuracy, abs=0.06)
    assert floor.accuracy > 0.6
    for result in (floor, ours):
        assert result.rounds == 10
        assert len(result.round_seconds) == 9
        assert result.clients_per_second == pytest.approx(
            TINY.cohort / result.seconds_per_round, rel=0.01
        )
        assert 0 < result.startup_s < 60


@pytest.mark.slow
def test_flower_does_the_same_work_too() -> None:
    asked = Asked(TINY, rounds=10)
    floor, flower = measure("floor", asked), measure("flower", asked)
    assert floor.accuracy == pytest.approx(flower.accuracy, abs=0.06)


def test_a_peer_gets_the_clients_cohorts_and_weights_of_wildflower(tmp_path: Path) -> None:
    asked = Asked(TINY, rounds=2)
    prepare(asked, tmp_path)
    job, host = read_job(tmp_path), open_host(wildflower_config(asked))
    assert job.clients == len(host.client_ids)
    for client, (x, y) in enumerate(read_clients(tmp_path, job)):
        own = host.data_of(client)
        assert np.array_equal(x.numpy(), own.x)
        assert np.array_equal(y.numpy(), own.y)
    assert job.cohorts == cohorts_of(TINY, 2)
    start = load_arrays(tmp_path / "start.safetensors")
    assert all(start[name].equal(value) for name, value in host.task.build(0).items())


def test_shuffling_a_dataset_keeps_every_example_once() -> None:
    numbers = np.arange(10)
    own = Dataset("own", Split(numbers[:7], numbers[:7]), Split(numbers[7:], numbers[7:]))
    mixed = shuffled(own, 6)
    assert mixed.test is not None
    assert len(mixed.train) == 6
    assert sorted([*mixed.train.y, *mixed.test.y]) == numbers.tolist()
    assert np.array_equal(np.asarray(mixed.train.x), mixed.train.y)
    assert not np.array_equal(mixed.train.y, numbers[:6])


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells PSS")
def test_memory_of_a_tree_counts_children() -> None:
    command = [sys.executable, "-c", PARENT]
    with psutil.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        taken = int(process.stdout.readline()) / 2**20
        whole, alone = pss_mb(process.pid), process.memory_full_info().pss / 2**20
        process.communicate("\n")
    assert whole is not None
    assert alone < taken < whole - alone + 1
    assert pss_mb(process.pid) is None


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('one'); raise SystemExit('the disk is full')"]
    with pytest.raises(WildflowerError, match=r"exit code 1.*the disk is full"):
        watch(command, tmp_path / "log", {}, limit_s=60)


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(WildflowerError, match="took too long"):
        watch([sys.executable, "-c", parent], log, {}, limit_s=0.6)
    pid = int(log.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_systems_take_turns() -> None:
    order = list(turns(["W1", "W2"], ["a", "b"], repeat=2))
    assert order[:4] == [("W1", "a"), ("W1", "b"), ("W1", "a"), ("W1", "b")]
    assert [workload for workload, _ in order] == ["W1"] * 4 + ["W2"] * 4


def test_ratios_are_ours_against_floor_and_peers_against_ours() -> None:
    found = ratios({"wildflower": 2.0, "floor": 4.0, "pfl": 6.0, "flower": 60.0})
    assert found == {"floor": 0.5, "pfl": 3.0, "flower": 30.0}
    assert ratios({"wildflower-inline": 2.0, "floor": 4.0}) == {"floor": 0.5}
    assert ratios({"floor": 4.0, "pfl": 6.0}) == {}


def test_tables_tell_medians_ratios_and_missed_targets() -> None:
    results = [*measured("wildflower", 1.0, 9.0, 0.8), *measured("floor", 2.0), RUN]
    results += [*measured("pfl", 4.0), *measured("wildflower", 1.0, workload="W2")]
    rows = medians(results)
    assert [(row.system, row.runs, row.seconds_per_round) for row in rows[:2]] == [
        ("wildflower", 3, 1.0),
        ("floor", 2, 2.0),
    ]
    speed = speed_table(rows).splitlines()
    assert "0.50 (at most 0.45, missed)" in speed[2]
    assert "4.00 (at least 3.3)" in speed[2]
    assert speed[3].startswith("| W2")
    assert len({len(line) for line in speed}) == 1
    details = detail_table(rows).splitlines()
    assert [cell.strip() for cell in details[3].split("|")[1:-1]] == [
        *("W1", "floor", "500", "1.0", "400", "0.9000", "0.3000", "3")
    ]
    assert report(results)["ratios"]["W1"]["floor"] == 0.5


def test_speeds_are_told_with_three_figures() -> None:
    told_as = [three_figures(value) for value in (3.123, 31.23, 312.3, 3123.0)]
    assert told_as == ["3.12", "31.2", "312", "3123"]


def test_the_plot_shows_every_system_and_has_equal_bytes_twice(tmp_path: Path) -> None:
    told_all = report([*measured("wildflower", 1.0), *measured("floor", 2.0)])
    assert speeds(told_all) == {"W1": {"wildflower": 1000.0, "floor": 500.0}}
    files = [tmp_path / name for name in ("one.svg", "two.svg")]
    for file in files:
        save(draw(told_all), file, "clients per second")
    one, two = (file.read_text() for file in files)
    assert "Wildflower" in one
    assert "bare loop" in one
    assert one == two


def test_memory_is_told_as_a_ratio() -> None:
    found = told({100: 500.0, 10_000: 540.0}, Crowd(), "ray")
    assert found["ratio"] == 1.08
    assert found["within_10_percent"]
    assert not told({100: 500.0, 10_000: 560.0}, Crowd(), "ray")["within_10_percent"]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here"),
        ),
    ],
)
def test_the_servers_device_is_measured_at_all_it_does(device: str) -> None:
    found = server.measure(server.Asked(torch.device(device), repeat=1, training=True, tiny=True))
    assert json.loads(json.dumps(found)) == found
    assert {row["model"] for row in found["aggregation"]} == {
        "mnist-2nn",
        "mnist-cnn-mcmahan",
        "synthetic-25m",
    }
    for row in found["aggregation"]:
        assert row["of_copy"] == pytest.approx(
            row["fold_gb_per_s"] / row["copy_gb_per_s"], rel=0.01
        )
    assert len(found["robust"]) == 5
    assert {row["autocast"] for row in found["evaluation"]} == {"none", "bfloat16"}
    assert [row["workload"] for row in found["training"]] == ["W1", "W2", "W3", "W4"]
    assert "synthetic-25m" in server.describe(found)


def test_wrong_names_are_told() -> None:
    with pytest.raises(InputError, match="did you mean 'W1-100'"):
        find_workload("W1-10")
    with pytest.raises(InputError, match="did you mean 'flower'"):
        find_system("flowr")
    assert all(workload.cohort % 2 == 0 for workload in WORKLOADS.values())
