"""Whole runs as real processes: same bytes twice, same bytes after SIGKILL, and kind failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.cli import run
from deploy.report.reading import FAILED, keep_failure
from server.checkpoints import checkpoint_files
from server.run_folder import RunFolder
from shared_models.files import locked, sha256_of
from tests.conftest import DIGITS

Refused = Callable[..., str]
LONG = ("-s", "stages.train.rounds=12")


# Lets no file grow beyond 20 KB: a write fails as it does on a full disk.
FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""


def command(*arguments: str | Path, first: str = "") -> list[str]:
    code = f"{first}\nfrom deploy.__main__ import main; main()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def wildflower(*arguments: str | Path, first: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, first=first), capture_output=True, text=True, check=False
    )


def simulate(config: Path, out: Path, *more: str) -> str:
    """Runs a config in this process; returns the hash of the final weights."""
    assert run(["simulate", str(config), "--out", str(out), *more]) == 0
    return sha256_of(out / "model.safetensors")


def lines_of(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def interrupt_after(
    rounds: int,
    out: Path,
    how: signal.Signals,
    arguments: Sequence[str | Path],
    look: Callable[[int], None] = lambda _: None,
) -> str:
    """Starts a run, sends a signal in the middle of a round, returns what it said on stderr.

    `look` is called with the process's id before that.
    """
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < rounds:
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.005)
    look(process.pid)
    time.sleep(0.03)  # into the round
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    return said


def test_two_runs_of_one_config_are_bit_equal(digits_toml: Path, tmp_path: Path) -> None:
    one = simulate(digits_toml, tmp_path / "one")
    assert wildflower("simulate", digits_toml, "--out", tmp_path / "two").returncode == 0
    assert one == sha256_of(tmp_path / "two" / "model.safetensors")
    assert one != simulate(digits_toml, tmp_path / "three", "-s", "seed=1")


def test_the_folders_own_config_does_the_run_again(digits_toml: Path, tmp_path: Path) -> None:
    one = simulate(digits_toml, tmp_path / "one", "-s", "stages.train.rounds=2")
    assert one == simulate(tmp_path / "one", tmp_path / "again")
    assert one == simulate(tmp_path / "one" / "config.toml", tmp_path / "and-again")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of a run of twelve rounds that was left alone."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "digits.toml").write_text(DIGITS)
    return simulate(folder / "digits.toml", folder / "run", *LONG)


def test_killed_and_resumed_equals_left_alone(
    digits_toml: Path, alone: str, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    for rounds in (2, 6):
        more = ["--resume"] if out.exists() else []
        interrupt_after(
            rounds, out, signal.SIGKILL, ["simulate", digits_toml, "--out", out, *LONG, *more]
        )
    assert not (out / "model.safetensors").exists()
    done = wildflower("simulate", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert sha256_of(out / "model.safetensors") == alone
    rounds_told = [json.loads(line)["round"] for line in lines_of(out)]
    assert rounds_told == list(range(1, 13))


def test_a_damaged_checkpoint_costs_one_round_not_the_run(
    digits_toml: Path, alone: str, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    interrupt_after(5, out, signal.SIGKILL, ["simulate", digits_toml, "--out", out, *LONG])
    newest = checkpoint_files(out / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    done = wildflower("simulate", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert "going back to the checkpoint before it" in done.stdout
    assert sha256_of(out / "model.safetensors") == alone


@pytest.mark.parametrize("lost", [slice(0, 1), slice(1, 2), slice(0, 99)])
def test_metrics_that_lack_a_round_are_told_and_no_traceback(
    lost: slice, digits_toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    interrupt_after(5, out, signal.SIGKILL, ["simulate", digits_toml, "--out", out, *LONG])
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    del lines[lost]
    (out / "metrics.jsonl").write_text("".join(lines))
    done = wildflower("simulate", out, "--resume")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "metrics.jsonl: stage 'train', round " in line
    assert "is not in it; put back a copy" in line


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(digits_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = interrupt_after(2, out, signal.SIGINT, ["simulate", digits_toml, "--out", out, *LONG])
    (line,) = said.strip().splitlines()
    assert line.startswith("interrupted")
    assert f"wildflower simulate {out} --resume" in line
    assert wildflower("simulate", out, "--resume").returncode == 0


def test_a_polite_end_is_an_interruption(digits_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = interrupt_after(2, out, signal.SIGTERM, ["simulate", digits_toml, "--out", out, *LONG])
    assert f"wildflower simulate {out} --resume" in said


def test_a_config_that_was_edited_after_the_run_does_not_pass_for_it(
    refused: Refused, digits_toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    simulate(digits_toml, out)
    edited = (out / "config.toml").read_text().replace("rounds = 4", "rounds = 5")
    (out / "config.toml").write_text(edited)
    assert "was edited after the run" in refused("simulate", out, "--resume")


def test_a_run_folder_tells_everything(digits_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulate(digits_toml, out)
    assert {path.name for path in out.iterdir()} == {
        "checkpoints",
        "config.toml",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "partition.json",
        "report.html",
        "samples.json",
        "summary.json",
        "train.safetensors",
    }
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "done"
    assert summary["params"] == 8714
    assert summary["clients"] == 12
    (stage,) = summary["stages"]
    assert stage["rounds"] == 4
    assert stage["clients_per_second"] > 0
    assert {"startup_s", "total_s", "peak_rss_mb"} <= set(summary)
    lines = [json.loads(line) for line in lines_of(out)]
    assert lines[0]["clients_selected"] == lines[0]["clients_aggregated"] == 10
    assert set(lines[0]["seconds"]) == {"total", "train", "aggregate", "evaluate", "checkpoint"}
    assert lines[-1]["eval"] == stage["eval"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["plan"] == {
        "trainer": "loop",
        "block_size": 4,
        "dtype": "float32",
        "device": "cpu",
        "autocast": "none",
        "compile": False,
        "threads": 1,
        "block_map": "cohort",
    }


# Ends the process the hard way at the n-th file that is written, just before or after it is there.
KILL_AT_WRITE = """
import os, pathlib, signal
count, place, before = 0, {place}, {before}
rename = pathlib.Path.replace
def replace(self, target):
    global count
    count += 1
    if count == place and before:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(self, target)
    if count == place:
        os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = replace
"""
TWO_STAGES = """
task = "digits-cnn"
[plan]
trainer = "loop"
block_size = 10
[data]
clients = 12
[[stages]]
name = "first"
kind = "train"
rounds = 2
clients_per_round = 6
local_learning_rate = 0.1
[[stages]]
name = "second"
kind = "train"
rounds = 2
clients_per_round = 6
local_learning_rate = 0.05
server_optimizer = "momentum"
"""
# config, manifest, partition, twice two checkpoints and a stage file, model, samples, the summary
# twice, report
WRITES = 14


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages that was left alone."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.toml").write_text(TWO_STAGES)
    simulate(folder / "two.toml", folder / "alone")
    return folder / "alone"


def killed_at(place: int, config: Path, out: Path, *, before: bool) -> None:
    first = KILL_AT_WRITE.format(place=place, before=before)
    done = wildflower("simulate", config, "--out", out, first=first)
    assert done.returncode == -signal.SIGKILL, (place, done.stderr)
    done = wildflower("simulate", config, "--out", out, "--resume")
    assert done.returncode == 0, (place, done.stderr)
    told = [(row["stage"], row["round"]) for row in map(json.loads, lines_of(out))]
    assert told == [("first", 1), ("first", 2), ("second", 1), ("second", 2)]
    assert not list(out.rglob(".*.tmp"))


@pytest.mark.parametrize(
    ("place", "before"),
    [
        (1, True),
        (5, True),
        *[
            pytest.param(place, before, marks=pytest.mark.slow)
            for place in range(1, WRITES + 1)
            for before in (True, False)
            if (place, before) not in {(1, True), (5, True)}
        ],
    ],
)
def test_killed_at_any_write_and_resumed_equals_left_alone(
    place: int, before: bool, two_stages: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    killed_at(place, two_stages.parent / "two.toml", out, before=before)
    for name in ("first.safetensors", "second.safetensors", "model.safetensors"):
        assert sha256_of(out / name) == sha256_of(two_stages / name)


def test_a_run_goes_on_only_with_the_same_data(digits_toml: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "mine.npz", tmp_path / "run"
    x, y = np.random.default_rng(0).random((60, 8, 8)), np.arange(60) % 10
    np.savez(data, x=x, y=y, x_test=x, y_test=y)
    arguments: list[str | Path] = [
        "simulate",
        digits_toml,
        "--out",
        out,
        *LONG,
        "-s",
        f"data.name={data}",
    ]
    interrupt_after(2, out, signal.SIGKILL, arguments)
    np.savez(data, x=x[::-1], y=y, x_test=x, y_test=y)
    done = wildflower("simulate", out, "--resume")
    assert done.returncode == 1
    assert "data_sha256 changed since the run began" in done.stderr
    np.savez(data, x=x, y=y, x_test=x, y_test=y)
    assert wildflower("simulate", out, "--resume").returncode == 0


def test_two_processes_cannot_work_on_one_run(
    refused: Refused, digits_toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    simulate(digits_toml, out)
    (out / "summary.json").unlink()
    with locked(out / "config.toml") as free:
        assert free
        line = refused("simulate", out, "--resume")
    assert "another process is working on this run" in line
    assert wildflower("simulate", out, "--resume").returncode == 0


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail for the user's input; returns the one line it said."""

    def refuse(*arguments: str | Path) -> str:
        code = run([str(argument) for argument in arguments])
        told = capsys.readouterr().err
        assert code == 2, (code, told)
        (line,) = told.strip().splitlines()
        assert line.startswith("error: ")
        return line

    return refuse


def test_an_existing_folder_is_never_overwritten(
    refused: Refused, digits_toml: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    assert "already exists" in refused("simulate", digits_toml, "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "important"
    (tmp_path / "mine" / ".notes.1.tmp").write_text("also important")
    assert "not a run folder" in refused(
        "simulate", digits_toml, "--out", tmp_path / "mine", "--resume"
    )
    assert (tmp_path / "mine" / ".notes.1.tmp").exists()


def test_a_run_resumes_only_as_itself(refused: Refused, digits_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = simulate(digits_toml, out)
    line = refused("simulate", digits_toml, "--out", out, "--resume", "-s", "seed=5")
    assert "'seed' differs" in line
    assert simulate(digits_toml, out, "--resume") == before


def test_why_a_run_failed_outlives_another_that_would_go_on_there(
    refused: Refused, digits_toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    simulate(digits_toml, out)
    RunFolder(out).update_summary(status="failed")
    keep_failure(out, "of that time")
    assert "differs" in refused("simulate", digits_toml, "--out", out, "--resume", "-s", "seed=5")
    assert json.loads((out / FAILED).read_text()) == {"reason": "of that time"}


def test_folders_that_cannot_be_written(
    refused: Refused, digits_toml: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused("simulate", digits_toml, "--out", tmp_path / "file")
    assert "file" in refused("simulate", digits_toml, "--out", tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(refused: Refused, digits_toml: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused("simulate", digits_toml, "--out", tmp_path / "run")


def test_wrong_words_on_the_command_line(
    refused: Refused, digits_toml: Path, tmp_path: Path
) -> None:
    assert "there is no such file" in refused("simulate", tmp_path / "nothing.toml")
    assert "did you mean 'rounds'" in refused("simulate", digits_toml, "-s", "stages.train.ronds=1")
    assert "did you mean 'digits-cnn'" in refused("simulate", digits_toml, "-s", "task=digit-cnn")
    assert "--resume needs to know which run" in refused("simulate", digits_toml, "--resume")
    assert "No such command" in refused("simulat")
    digits_toml.write_bytes(b"\xef\xbb\xbf" + digits_toml.read_bytes())  # as Windows editors do
    long = ["simulate", digits_toml, "--out", tmp_path / ("x" * 300)]
    assert "too long" in refused(*long)
    assert "there is no such file" in refused("verify", tmp_path / "x.tflite")
    assert "not a run folder" in refused("export", tmp_path)
    assert "'natural' needs data" in refused("data", "info", "digits", "--partition", "natural")
    np.savez(tmp_path / "mine.npz", x=np.zeros((40, 8, 8)), y=np.arange(40) % 10)
    own = f"data.name={tmp_path}/mine.npz"
    assert "has no test split" in refused(
        "simulate", digits_toml, "--out", tmp_path / "run", "-s", own
    )


def test_a_run_that_cannot_start_leaves_no_folder(
    refused: Refused, digits_toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for wrong, told in (
        ("data.clients=5000", "5000 clients cannot share"),
        ("task=digits-cn", "task: 'digits-cn' does not exist; did you mean 'digits-cnn'?"),
        ("evaluate.device=cuda", "'cuda' is not available"),
        ("data.name=digts", "did you mean 'digits'"),
    ):
        if wrong.endswith("cuda") and torch.cuda.is_available():
            continue
        assert told in refused("simulate", digits_toml, "--out", out, "-s", wrong)
        assert not out.exists()


def test_ones_own_data_trains(digits_toml: Path, tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((40, 8, 8)), np.arange(40) % 10
    np.savez(tmp_path / "mine.npz", x=x, y=y, client_id=np.arange(40) % 5)
    text = digits_toml.read_text().replace(
        '"iid"\nclients = 12', f'"natural"\nname = "{tmp_path}/mine.npz"'
    )
    digits_toml.write_text(text + "\n[evaluate]\ndata = 'none'\n")
    out = tmp_path / "run"
    simulate(digits_toml, out)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["clients"], summary["stages"][0]["eval"]) == (5, None)


def test_a_write_that_fails_loses_nothing(digits_toml: Path, tmp_path: Path) -> None:
    alone = simulate(digits_toml, tmp_path / "alone")
    out = tmp_path / "run"
    done = wildflower("simulate", digits_toml, "--out", out, first=FULL_DISK)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert not list(out.rglob("*.tmp"))
    assert simulate(digits_toml, out, "--resume") == alone
