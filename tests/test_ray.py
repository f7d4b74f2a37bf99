"""The Ray engine: a crew that loses nobody, and the same bytes as inline whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict

from deploy.cli import run
from deploy.engines.cluster import connected
from deploy.engines.crew import Crew, Gone, Job, Lost, MakeWorker
from deploy.engines.grid import become_a_task
from deploy.engines.inline import InlineGrid
from deploy.engines.parcel import pack, unpack
from deploy.engines.ray import RayGrid
from deploy.engines.slabs import Reader, Writer
from deploy.events import Event, Observer
from deploy.simulate import simulate
from server.events import BlockFinished
from server.patience import one_by_one_when_bad
from shared_models.config import Config, to_toml
from shared_models.errors import EngineError
from shared_models.files import sha256_of
from shared_models.machine import cores
from shared_models.messages import BlockFailure, BlockRequest, Reply
from shared_models.partial import Partial, Row, Sum
from shared_models.wire import decode_arrays
from tests.in_memory import config_of
from tests.odd_jobs import OddJobber, die, die_once, fail, is_a_view, note, pid_after, sleep
from tests.slow_app import HANGS
from tests.test_runs import interrupt_after, lines_of, wildflower

# Ray leaves its log files and processes to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
RAY_2 = ("--engine", "ray", "--workers", "2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[int]:
    """Ray on this machine, started once for this module."""
    with connected(None, 2) as workers:
        yield workers


@pytest.fixture(scope="module")
def crew(cluster: int) -> Iterator[Crew]:
    with Crew(MakeWorker(OddJobber, options={"num_cpus": 0}), cluster) as crew:
        yield crew


def jobs(*calls: Any) -> list[Job]:
    return [Job(call if isinstance(call, tuple) else (call,)) for call in calls]


def test_results_come_in_the_order_of_the_jobs(crew: Crew) -> None:
    seconds = (0.3, 0.0, 0.1, 0.0, 0.0)
    assert list(crew.map(jobs(*((sleep, s) for s in seconds)))) == list(seconds)
    assert list(crew.map([])) == []


def test_jobs_are_taken_as_they_are_needed(crew: Crew) -> None:
    taken: list[int] = []

    def calls() -> Iterator[Job]:
        for number in range(20):
            taken.append(number)
            yield Job((sleep, 0.0))

    results = crew.map(calls())
    assert taken == []
    for number, _ in enumerate(results, start=1):
        # Two a worker may be under way or be done early; one a worker more was looked at.
        assert max(taken) < number + 6
    assert len(taken) == 20


def test_a_slow_job_holds_up_neither_the_other_worker_nor_memory(
    crew: Crew, tmp_path: Path
) -> None:
    seconds = [1.0] + [0.0] * 9
    calls = [(note, tmp_path / str(number), s) for number, s in enumerate(seconds)]
    results = crew.map(jobs(*calls))
    next(results)
    # While one worker slept the other did all that it might: not more than four were sent.
    assert len(list(tmp_path.iterdir())) <= 5
    assert len(list(results)) == 9


def test_the_last_jobs_go_to_whoever_is_free(crew: Crew) -> None:
    pids = list(crew.map(jobs(*[(pid_after, s) for s in (0.0, 0.0, 0.0, 0.4, 0.0, 0.0)])))
    assert pids[4] == pids[5] != pids[3]


def test_a_job_that_waited_behind_one_that_was_cut_off_is_done(crew: Crew) -> None:
    calls = [Job((sleep, 60), deadline_s=0.5), *[Job((sleep, 0.1), deadline_s=30)] * 7]
    assert list(crew.map(calls)) == [Lost("cut off after 0.5 s", timed_out=True), *[0.1] * 7]


def test_workers_survive_maps_and_a_map_that_nobody_reads_to_its_end(crew: Crew) -> None:
    crew.wait()  # who took the place of one that was cut off may not have started yet
    before = set(crew.map(jobs(*[(pid_after, 0.2)] * 6)))  # long enough that none is left out
    left = crew.map(jobs(*[(sleep, 0.05)] * 6))
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert set(crew.map(jobs(*[(os.getpid,)] * 6))) <= before


def test_what_a_worker_raises_is_the_loss_of_its_job_alone(crew: Crew) -> None:
    assert list(crew.map(jobs((sleep, 0), (fail,), (sleep, 0)))) == [
        0,
        Lost("ValueError: bad thing"),
        0,
    ]


def test_a_killed_worker_is_replaced_and_its_job_done_again(crew: Crew, tmp_path: Path) -> None:
    found = list(crew.map(jobs((os.getpid,), (die_once, tmp_path / "been"), (os.getpid,))))
    assert all(isinstance(pid, int) for pid in found)


def test_a_job_that_kills_whoever_does_it_is_given_up(crew: Crew) -> None:
    lost, slept = crew.map(jobs((die,), (sleep, 0)))
    assert lost == Lost("3 workers died of it: its process died", timed_out=True)
    assert slept == 0


def test_a_job_past_its_deadline_is_cut_off(crew: Crew) -> None:
    began = time.monotonic()
    late, slept = crew.map([Job((sleep, 60), deadline_s=0.2), Job((sleep, 0))])
    assert (late, slept) == (Lost("cut off after 0.2 s", timed_out=True), 0)
    assert time.monotonic() - began < 30


def test_a_worker_that_cannot_start_is_told_in_one_line(cluster: int) -> None:
    with (
        Crew(MakeWorker(OddJobber, ("good bye",), {"num_cpus": 0}), cluster) as crew,
        pytest.raises(EngineError, match="cannot start: RuntimeError: good bye is no greeting"),
    ):
        list(crew.map(jobs((sleep, 0))))


@pytest.mark.usefixtures("cluster")
def test_what_jobs_share_travels_once_a_worker_and_is_not_copied() -> None:
    with Crew(MakeWorker(OddJobber, options={"num_cpus": 0}), 1) as crew:
        shared = tuple(ray.put(np.full(200_000, value)) for value in (1.0, 2.0))
        found = [*crew.map(Job((is_a_view,), shared=shared[:1]) for _ in range(3))]
        assert found == [(found[0][0], False, 200_000.0)] * 3
        (other,) = crew.map([Job((is_a_view,), shared=shared[1:])])
        assert other[1:] == (False, 400_000.0)


def test_a_parcel_holds_views_and_leaves_records_behind() -> None:
    become_a_task()
    kept = ArrayRecord({"w": Array("uint8", (3,), "raw", b"abc")})
    own = ArrayRecord({"v": Array("uint8", (4,), "raw", b"defg")})
    message = Message(RecordDict({"kept": kept, "own": own}), 1, "train.block", group_id="7")
    parcel = pack(message, [kept, own].index)
    assert parcel.buffers == ()
    again = unpack(parcel.skeleton, (), [kept, own].__getitem__)
    assert again.content["kept"] is kept
    whole = pack(message)
    assert [bytes(buffer) for buffer in whole.buffers] == [b"abc", b"defg"]
    reply = unpack(whole.skeleton, whole.buffers)
    assert reply.metadata.group_id == "7"
    own_bytes = np.frombuffer(reply.content["own"]["v"].data, np.uint8)
    assert np.shares_memory(own_bytes, whole.buffers[1])


def test_a_slab_is_used_again_when_its_last_view_is_gone() -> None:
    reader = Reader()
    writer = Writer(reader.beacon)
    ticket = writer.deliver([np.arange(100, dtype=np.uint8), np.ones(3, np.uint8)])
    assert ticket is not None
    first, second = reader.open(ticket)
    assert (first.tolist(), second.tolist()) == (list(range(100)), [1, 1, 1])
    assert not first.flags.writeable
    view = first[10:20]
    del first, second
    other = writer.deliver([np.zeros(100, np.uint8)])
    assert other is not None
    assert other.name != ticket.name
    assert view.tolist() == list(range(10, 20))
    del view
    third = writer.deliver([np.zeros(100, np.uint8)])
    assert third is not None
    assert third.name == ticket.name


def test_slabs_grow_and_are_refused_when_all_are_wanted() -> None:
    reader = Reader()
    writer = Writer(reader.beacon)
    held = []
    for _ in range(8):
        ticket = writer.deliver([np.zeros(10, np.uint8)])
        assert ticket is not None
        held.append(reader.open(ticket))
    assert writer.deliver([np.zeros(10, np.uint8)]) is None
    held.clear()
    ticket = writer.deliver([np.full(100_000, 7, np.uint8)])
    assert ticket is not None
    assert reader.open(ticket)[0].sum() == 700_000
    assert Writer(None).deliver([np.zeros(10, np.uint8)]) is None


def open_ray(config: Config, workers: int) -> RayGrid:
    return RayGrid("clients.app:app", {"config": to_toml(config)}, workers, here=True)


def weights(config: Config, out: Path, grid: Any, observe: Observer = lambda _: None) -> str:
    """Runs a config on a grid; returns the hash of the final weights."""
    try:
        simulate(config, out, observe, grid, resume=False)
    finally:
        grid.close()
    return sha256_of(out / "model.safetensors")


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> str:
    from clients.app import app

    config = config_of()
    grid = InlineGrid(app, {"config": to_toml(config)})
    return weights(config, tmp_path_factory.mktemp("inline") / "run", grid)


def test_a_result_that_died_with_its_worker_is_made_again(cluster: int) -> None:
    seen: list[int] = []

    def receive(result: int) -> int:
        seen.append(result)
        if len(seen) == 2:
            raise Gone
        return result

    with Crew(MakeWorker(OddJobber, options={"num_cpus": 0}), cluster, receive) as crew:
        assert list(crew.map(jobs((sleep, 0.0), (sleep, 0.1), (sleep, 0.2)))) == [0.0, 0.1, 0.2]
    assert len(seen) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_bytes_as_inline_for_any_number_of_workers(
    workers: int, inline: str, cluster: int, tmp_path: Path
) -> None:
    assert workers <= cluster
    config = config_of()
    assert weights(config, tmp_path / "run", open_ray(config, workers)) == inline
    manifest = (tmp_path / "run" / "manifest.json").read_text()
    assert '"engine": "ray"' in manifest
    assert f'"workers": {workers}' in manifest


def test_a_worker_killed_in_the_middle_of_a_round_changes_no_byte(
    inline: str, cluster: int, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_in_round_2(event: Event) -> None:
        if isinstance(event, BlockFinished) and event.round == 2 and not killed:
            # One is at its block while we are told of another.
            for process in all_of(cluster, os.getpid()):
                process.kill()
                killed.append(process.pid)

    config = config_of()
    assert weights(config, tmp_path / "run", open_ray(config, cluster), kill_in_round_2) == inline
    assert len(killed) >= cluster
    assert all('"clients_failed": 0' in line for line in lines_of(tmp_path / "run"))


@pytest.mark.slow
def test_only_the_client_that_hangs_is_left_out(cluster: int, tmp_path: Path) -> None:
    config = config_of("client_deadline_s=3.0", "stages.train.rounds=1")
    grid = RayGrid("tests.slow_app:app", {"config": to_toml(config)}, cluster, here=False)
    weights(config, tmp_path / "run", grid)
    record = json.loads(lines_of(tmp_path / "run")[0])
    assert record["clients_aggregated"] == 9
    assert record["failures"] == [
        {"client_id": HANGS, "status": "failed", "reason": "cut off after 3 s"}
    ]
    assert record["repeatable"] is False


def test_clients_of_a_lost_block_come_together_again() -> None:
    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        for request in requests:
            if 2 in request.client_ids:
                yield BlockFailure("late")
            else:
                rows = tuple(Row(k, k) for k in request.client_ids)
                total = sum(request.client_ids)
                yield Partial({"delta": Sum({"w": torch.full((2,), float(total))}, total)}, rows)

    requests = [BlockRequest("train", 1, 0, n, ids, {}) for n, ids in enumerate([(5,), (1, 2, 3)])]
    whole, mended = one_by_one_when_bad(send, requests, lambda *_: None)
    assert isinstance(whole, Partial)
    assert isinstance(mended, Partial)
    assert [(row.client_id, row.status, row.reason) for row in mended.rows] == [
        (1, "ok", ""),
        (2, "failed", "late"),
        (3, "ok", ""),
    ]
    assert mended.sums["delta"].weight == 4
    assert mended.sums["delta"].arrays["w"].tolist() == [4, 4]
    alone = replace(requests[0], client_ids=(2,))
    assert list(one_by_one_when_bad(send, [alone], lambda *_: None)) == [BlockFailure("late")]


def test_weights_are_put_once_a_round_and_read_in_place(cluster: int) -> None:
    config = config_of()
    grid = open_ray(config, cluster)
    record = ArrayRecord({"w": Array("float32", (2,), "wildflower.raw", bytes(8))})
    messages = [Message(RecordDict({"params": record}), 1, "train.nonsense") for _ in range(5)]
    elsewhere = RayGrid("clients.app:app", {"config": to_toml(config)}, cluster, here=False)
    refs = {job.shared for job in map_jobs(elsewhere, messages)}
    elsewhere.close()
    assert len(refs) == 1
    ((ref,),) = refs
    parcel = ray.get(ref)
    tensor = decode_arrays(unpack(parcel.skeleton, parcel.buffers))["w"]
    assert not parcel.buffers[0].flags.owndata
    assert tensor.data_ptr() == parcel.buffers[0].ctypes.data
    posted = [job.args[1] for job in map_jobs(grid, messages)]
    grid.close()
    assert len(posted) == 5
    assert len({told.ticket for told in posted}) == 1


def map_jobs(grid: RayGrid, messages: list[Message]) -> list[Job]:
    """Returns the jobs that a grid makes of the messages of one sending."""
    made: list[Job] = []

    def no_map(jobs: Iterator[Job]) -> Iterator[Any]:
        made.extend(jobs)
        return iter(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Crew, "map", lambda _, jobs: no_map(jobs))
        list(grid.send_and_receive(messages))
    return made


def test_a_fault_in_the_client_app_travels_back_as_a_reply(cluster: int) -> None:
    grid = open_ray(config_of(), cluster)
    ids = list(grid.push_messages([Message(RecordDict(), 1, "train.nonsense") for _ in range(3)]))
    replies = list(grid.pull_messages(ids))
    grid.close()
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert all("nonsense" in (reply.error.reason or "") for reply in replies)


def test_every_core_is_counted_once() -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))


def crew_of(pid: int) -> list[psutil.Process]:
    """Returns the actors among a process's descendants."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "WildflowerWorker" in "".join(process.cmdline()):
                found.append(process)
    return found


def all_of(size: int, pid: int) -> list[psutil.Process]:
    """Returns the actors when all are seen; a busy machine may not show them at once."""
    until = time.monotonic() + 30
    while len(found := crew_of(pid)) < size:
        assert time.monotonic() < until, [
            (process.pid, process.ppid(), process.name()) for process in psutil.process_iter()
        ]
        time.sleep(0.05)
    return found


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, alive


class Started:
    """Remembers what a run had started when it was looked at."""

    def __init__(self) -> None:
        self.processes: list[psutil.Process] = []

    def look(self, pid: int) -> None:
        self.processes = psutil.Process(pid).children(recursive=True)


def test_killed_with_ray_and_resumed_elsewhere_equals_left_alone(
    inline: str, digits_toml: Path, tmp_path: Path
) -> None:
    out, started = tmp_path / "run", Started()
    arguments = ["simulate", str(digits_toml), "--out", str(out), *RAY_2]
    interrupt_after(2, out, signal.SIGKILL, arguments, started.look)
    assert len(started.processes) > 4  # Ray's own, and the workers
    wait_until_gone(started.processes)
    done = wildflower("simulate", out, "--resume", "--engine", "inline")
    assert done.returncode == 0, done.stderr
    assert sha256_of(out / "model.safetensors") == inline


def test_ctrl_c_ends_ray_and_says_how_to_go_on(
    inline: str, digits_toml: Path, tmp_path: Path
) -> None:
    out, started = tmp_path / "run", Started()
    arguments = ["simulate", str(digits_toml), "--out", str(out), *RAY_2]
    said = interrupt_after(2, out, signal.SIGINT, arguments, started.look)
    (line,) = said.strip().splitlines()
    assert f"wildflower simulate {out} --resume" in line
    wait_until_gone(started.processes)
    done = wildflower("simulate", out, "--resume", "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_rss_mb"] > 300  # more than this process: Ray's too
    assert sha256_of(out / "model.safetensors") == inline


def test_wrong_words_about_the_machine(
    capsys: pytest.CaptureFixture[str], digits_toml: Path, tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path / "run"))
    for more, told in (
        (("--ray-address", free_address()), "nobody answers there"),
        (("--ray-address", "ray://somewhere"), "expected HOST:PORT"),
        (("--engine", "inline", "--workers", "2"), "contradicts --workers"),
        (("--engine", "rey"), "key 'engine' must be 'inline' or 'ray', got 'rey'"),
        (("--workers", "0"), "key 'workers' must be greater than or equal to 1"),
    ):
        assert run(["simulate", str(digits_toml), *out, *more]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert told in line
    assert not (tmp_path / "run").exists()


def free_address() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def other_cluster(tmp_path: Path) -> Iterator[str]:
    """A Ray cluster that is not ours to start or stop; yields its address."""
    address = free_address()
    host, port = address.split(":")
    options = {
        "node-ip-address": host,
        "port": port,
        "num-cpus": "2",
        "object-store-memory": str(2**27),
        "include-dashboard": "false",
        "temp-dir": tempfile.mkdtemp(),  # pytest's are too long for the names of sockets
    }
    told = [f"--{key}={value}" for key, value in options.items()]
    start = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", *told]
    with (tmp_path / "ray.log").open("w") as log:
        process = subprocess.Popen(start, stdout=log, stderr=log)
    try:
        wait_for(address)
        yield address
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        wait_until_gone(started)
        shutil.rmtree(options["temp-dir"], ignore_errors=True)


def wait_for(address: str) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), 1).close()
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_cluster_that_is_there_is_used_and_left_alone(
    inline: str, other_cluster: str, digits_toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = wildflower("simulate", digits_toml, "--out", out, "--ray-address", other_cluster)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sha256_of(out / "model.safetensors") == inline
    wait_for(other_cluster)
