"""Chaos: runs that are killed at random moments and resumed end in the bytes of one left alone.

    pytest tests/test_chaos.py --chaos-runs 30 -rP

A chaos run is real processes and real SIGKILLs, all drawn from its number: the driver dies at any
moment, in the middle of writing a checkpoint or clients' states, and some checkpoints are damaged
before the run goes on; every third runs under Ray and loses workers, too. The config has all that a
resumed run has to find again: two stages, server optimisers and control variates with state,
clients that keep theirs, and faults.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from server.checkpoints import checkpoint_files
from shared_models.arrays import digest
from shared_models.client_states import FILE_NAME, ClientStates
from shared_models.files import sha256_of
from tests.test_runs import command, lines_of, wildflower

CLIENTS, ROUNDS = 12, 8
CONFIG = f"""
task = "digits-cnn"
[data]
clients = {CLIENTS}
[plan]
trainer = "loop"
block_size = 3
[faults]
crash = 0.05
nan = 0.05
wrong_shape = 0.05
[[stages]]
name = "first"
kind = "train"
rounds = {ROUNDS}
clients_per_round = 6
local_learning_rate = 0.1
personal = ["head."]
server_optimizer = "momentum"
[[stages]]
name = "second"
kind = "train"
rounds = {ROUNDS}
clients_per_round = 6
local_learning_rate = 0.05
objective = "scaffold"
server_optimizer = "adam"
server_learning_rate = 0.01
"""
FILES = ("first.safetensors", "second.safetensors", "model.safetensors")
TIMES = ("seconds", "time", "rss_mb")
LINES = 2 * ROUNDS
LAST_TARGET = LINES - 3  # a kill later than this might come too late
STARTUP_S, ROUND_S = 3.0, 0.1  # about how long they take: where in them a kill comes is drawn
GONE_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """All that must not depend on what happened on the way."""

    sha256: Mapping[str, str]
    records: list[dict[str, Any]]
    states: Mapping[int, Mapping[str, str]]


def outcome(out: Path) -> Outcome:
    records = [json.loads(line) for line in lines_of(out)]
    told = [{key: value for key, value in r.items() if key not in TIMES} for r in records]
    with ClientStates(out / FILE_NAME, ["first", "second"]) as states:
        kept = states.load("second", ROUNDS, range(CLIENTS))
    assert kept, "clients keep something in this config"
    return Outcome(
        {name: sha256_of(out / name) for name in FILES},
        told,
        {k: {part: digest(arrays) for part, arrays in own.items()} for k, own in kept.items()},
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chaos") / "chaos.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def alone(config: Path) -> Outcome:
    """What a run leaves that nobody disturbs."""
    done = wildflower("simulate", config, "--out", config.parent / "alone")
    assert done.returncode == 0, done.stderr
    return outcome(config.parent / "alone")


@dataclass
class Victim:
    """A run in a process of its own; `start` begins it, or goes on with it."""

    config: Path
    out: Path
    rng: np.random.Generator
    ray: bool
    process: subprocess.Popen[bytes] = field(init=False)
    story: list[str] = field(default_factory=list)
    damaged: dict[str, bytes] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.out.with_suffix(".log")

    @property
    def lines(self) -> int:
        metrics = self.out / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    @property
    def is_over(self) -> bool:
        """Whether all is learnt: who goes on with such a run looks at no checkpoint."""
        return (self.out / "summary.json").exists()

    def start(self) -> None:
        engine = ["--engine", "ray", "--workers", "2"] if self.ray else ["--engine", "inline"]
        arguments = command("simulate", self.config, "--out", self.out, "--resume", *engine)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log)

    def waits_for(self, condition: Callable[[], bool], poll_s: float = 0.005) -> bool:
        """Returns whether the condition came true; False when the run ended before."""
        deadline = time.monotonic() + 240
        while not condition():
            if self.process.poll() is not None:
                assert self.process.returncode == 0, self.log.read_text()
                return False
            assert time.monotonic() < deadline, f"no progress: {self.log.read_text()}"
            time.sleep(poll_s)
        return True

    def reaches(self, target: int) -> bool:
        """Waits for some round, then for a random moment in it, or in the start."""
        began = target > self.lines
        if not self.waits_for(lambda: self.lines >= target):
            return False
        time.sleep(self.rng.uniform(0.0, ROUND_S if began else STARTUP_S))
        return self.process.poll() is None and not self.is_over

    def target(self) -> int:
        """Returns a random number of lines that are still to come, or are there already."""
        return int(self.rng.integers(self.lines, max(self.lines, LAST_TARGET) + 1))

    def kill(self, what: str) -> None:
        """Kills the driver; what it had started must end by itself."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(GONE_S)
        _, left = psutil.wait_procs(started, timeout=GONE_S)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert not left, f"left over by a driver that was killed: {left}"
        more = f", {len(started)} processes ended with it" if started else ""
        self.story.append(f"{what} after {self.lines} lines{more}")

    def finish(self) -> None:
        """Waits for the end."""
        self.process.wait(300)
        assert self.process.returncode == 0, self.log.read_text()


# What may happen. Each takes a run that is under way, and leaves one that is under way.


def killed_at_a_moment(run: Victim) -> None:
    if run.reaches(run.target()):
        run.kill("driver killed")
        run.start()


def killed_while_writing_a_checkpoint(run: Victim) -> None:
    folder, target = run.out / "checkpoints", run.target()
    torn = lambda: run.lines >= target and any(folder.glob(".*.tmp"))  # noqa: E731
    if run.waits_for(torn, poll_s=0.0):
        run.kill("driver killed in a checkpoint")
        if any(folder.glob(".*.tmp")):
            run.story[-1] += ", torn file left"
        run.start()


def killed_while_writing_states(run: Victim) -> None:
    journal, target = run.out / f"{FILE_NAME}-journal", run.target()
    if run.waits_for(lambda: run.lines >= target and journal.exists(), poll_s=0.0):
        run.kill("driver killed in a transaction")
        if journal.exists():
            run.story[-1] += ", journal left"
        run.start()


def killed_and_its_newest_checkpoint_damaged(run: Victim) -> None:
    if run.reaches(max(2, run.target())):
        run.kill("driver killed")
        damage_newest(run)
        run.start()


def worker_killed(run: Victim) -> None:
    """The run has to go on by itself."""
    if run.reaches(run.target()) and run.waits_for(lambda: bool(workers_of(run.process.pid))):
        workers = workers_of(run.process.pid)
        workers[int(run.rng.integers(len(workers)))].kill()
        run.story.append(f"worker killed after {run.lines} lines")


def workers_of(pid: int) -> list[psutil.Process]:
    """Returns the actors among a process's descendants."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "WildflowerWorker" in "".join(process.cmdline()):
                    found.append(process)
    return found


def damage_newest(run: Victim) -> None:
    """Cuts or changes the newest checkpoint, where there is a whole one before it."""
    whole = [
        path
        for path in checkpoint_files(run.out / "checkpoints")
        if run.damaged.get(path.name) != path.read_bytes()
    ]
    if run.is_over or len(whole) < 2 or whole[-1] != checkpoint_files(run.out / "checkpoints")[-1]:
        return
    content = bytearray(whole[-1].read_bytes())
    place = int(run.rng.integers(len(content)))
    if run.rng.random() < 0.5:
        del content[place:]
    else:
        content[place] ^= 1 << int(run.rng.integers(8))
    whole[-1].write_bytes(content)
    run.damaged[whole[-1].name] = bytes(content)
    run.story[-1] += f", then {whole[-1].name} damaged"


Happening = Callable[[Victim], None]
INLINE: tuple[Happening, ...] = (
    killed_at_a_moment,
    killed_while_writing_a_checkpoint,
    killed_while_writing_states,
    killed_and_its_newest_checkpoint_damaged,
)


def happenings(number: int, rng: np.random.Generator) -> Iterator[Happening]:
    """Yields what happens to a run, one to three things; a worker's death costs no run."""
    if number % 3 == 2:
        yield from [worker_killed] * int(rng.integers(1, 3))
        yield killed_at_a_moment
        return
    yield INLINE[number % 3 * 3]  # also a short test sees both ends of the list
    for _ in range(int(rng.integers(0, 3))):
        yield INLINE[int(rng.integers(len(INLINE)))]


def test_killed_at_random_and_resumed_equals_left_alone(
    chaos_run: int, config: Path, alone: Outcome, tmp_path: Path
) -> None:
    rng = np.random.default_rng(chaos_run)
    run = Victim(config, tmp_path / "run", rng, ray=chaos_run % 3 == 2)
    run.start()
    for happens in happenings(chaos_run, rng):
        happens(run)
        # Where a run goes on is no matter.
        run.ray = run.ray and (happens is worker_killed or rng.random() < 0.5)
    run.finish()
    print(f"{chaos_run}: {'; '.join(run.story)}")
    assert any("killed" in told for told in run.story), "it was never killed"
    found = outcome(run.out)
    assert found.sha256 == alone.sha256
    assert found.records == alone.records
    assert found.states == alone.states
    assert not [*run.out.rglob(".*.tmp"), *run.out.glob("*-journal")]
    said = run.log.read_text()
    for name in run.damaged:
        assert f"{name}: " in said
        assert "going back to the checkpoint before it" in said
