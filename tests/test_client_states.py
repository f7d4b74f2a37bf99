"""What clients keep: by round, pruned as checkpoints go, whole whenever the process is killed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.state import StateStore
from shared_models.client_states import FILE_NAME, ClientStates
from shared_models.errors import CheckpointError
from shared_models.partial import ClientState


def state(value: float, size: int = 2) -> ClientState:
    return {"control": {"encoder.w": torch.full((size,), float(value))}}


def values(found: Mapping[int, ClientState]) -> dict[int, float]:
    return {k: own["control"]["encoder.w"][0].item() for k, own in found.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def written(path: Path, *rounds: Mapping[int, float], size: int = 2) -> None:
    """Writes a round for each mapping from client to value."""
    with ClientStates(path, ["train"]) as states:
        for number, told in enumerate(rounds, start=1):
            states.save("train", number, {k: state(value, size) for k, value in told.items()})
            states.commit()


def test_a_state_comes_back_as_it_was_in_its_order(path: Path) -> None:
    shared = torch.arange(6.0)
    original: ClientState = {
        "b.c": {"w": shared, "a.b": shared.reshape(2, 3).T, "n": torch.tensor(3)},
        "b": {"c.w": shared[1:3], '"\n': torch.ones(2, dtype=torch.bfloat16)},
        "empty": {},
    }
    with ClientStates(path, ["train"]) as states:
        states.save("train", 1, {7: original})
        (again,) = states.load("train", 1, [7]).values()
    assert [(part, list(own)) for part, own in again.items()] == [
        (part, list(own)) for part, own in original.items()
    ]
    torch.testing.assert_close(again, original, rtol=0, atol=0)
    assert all(t.data_ptr() % 16 == 0 for own in again.values() for t in own.values())


def test_a_client_has_its_newest_state_of_the_round_or_before(path: Path) -> None:
    written(path, {1: 1.0, 2: 1.0}, {2: 2.0}, {1: 3.0, 3: 3.0})
    with ClientStates(path, ["train", "tune"]) as states:
        assert values(states.load("train", 3, [1, 2, 3, 4])) == {1: 3.0, 2: 2.0, 3: 3.0}
        assert values(states.load("train", 2, [1, 2, 3])) == {1: 1.0, 2: 2.0}
        assert states.load("train", 0, [1, 2, 3]) == {}
        assert states.load("tune", 3, [1, 2, 3]) == {}, "states do not pass from stage to stage"


def test_a_round_that_is_tried_again_does_not_see_the_failed_attempt(path: Path) -> None:
    written(path, {1: 1.0, 2: 1.0})
    with ClientStates(path, ["train"]) as states:
        store: StateStore = states
        store.save("train", 2, {1: state(-1.0)})
        store.rewind("train", 1)
        store.save("train", 2, {2: state(2.0)})
        assert values(store.load("train", 2, [1, 2])) == {1: 1.0, 2: 2.0}


def test_what_was_not_committed_is_gone_and_nothing_is_left_beside_the_file(path: Path) -> None:
    written(path, {1: 1.0})
    with ClientStates(path, ["train"]) as states:
        states.save("train", 2, {k: state(2.0, 100_000) for k in range(40)})  # more than its cache
        assert len(list(path.parent.iterdir())) == 2
    assert list(path.parent.iterdir()) == [path]
    with ClientStates(path, ["train"]) as states:
        assert values(states.load("train", 2, [1, 2])) == {1: 1.0}


def test_going_back_to_an_older_checkpoint_drops_later_rounds_and_stages(path: Path) -> None:
    with ClientStates(path, ["train", "tune"]) as states:
        for stage, number in (("train", 1), ("train", 2), ("tune", 1)):
            states.save(stage, number, {1: state(number)})
            states.commit()
        states.rewind("train", 1)
        assert values(states.load("train", 2, [1])) == {1: 1.0}
        assert states.load("tune", 1, [1]) == {}


def test_states_go_with_the_last_checkpoint_that_needs_them(path: Path) -> None:
    with ClientStates(path, ["train", "tune"]) as states:
        for number in (1, 2, 3):
            states.save("train", number, {1: state(number)})
        states.save("tune", 1, {1: state(9.0)})
        states.prune("train", 2)
        assert states.load("train", 1, [1]) == {}
        assert values(states.load("train", 2, [1])) == {1: 2.0}
        assert values(states.load("train", 3, [1])) == {1: 3.0}
        states.prune("tune", 1)
        assert states.load("train", 3, [1]) == {}
        assert values(states.load("tune", 1, [1])) == {1: 9.0}


def test_a_checkpoint_whose_states_are_lost_is_not_silently_resumed(path: Path) -> None:
    written(path, {1: 1.0}, {})
    with ClientStates(path, ["train"]) as states:
        states.rewind("train", 2)  # a round in which nobody kept anything is no loss
        with pytest.raises(CheckpointError, match="round 3, are not in it"):
            states.rewind("train", 3)
    path.unlink()
    with ClientStates(path, ["train"]) as states:
        states.rewind("train", 0)
        with pytest.raises(CheckpointError, match="the file was removed"):
            states.rewind("train", 1)


class Model:
    """The same in plain lists, which never prunes: (stage, client) -> [(round, value)]."""

    def __init__(self) -> None:
        self.place = self.oldest = (0, 0)
        self.versions: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def save(self, value: int, clients: Iterable[int]) -> None:
        stage, number = self.place
        for client in clients:
            self.versions.setdefault((stage, client), []).append((number, value))

    def newest(self, stage: int, number: int, client: int) -> int | None:
        own = self.versions.get((stage, client), [])
        return next((v for r, v in reversed(own) if r <= number), None)

    def rewind(self, place: tuple[int, int]) -> None:
        self.place = place
        for (stage, client), own in self.versions.items():
            kept = [(r, v) for r, v in own if (stage, r) <= place]
            self.versions[stage, client] = kept

    def needed(self) -> int:
        stage, number = self.oldest
        newer = sum((s, r) > self.oldest for (s, _), own in self.versions.items() for r, _ in own)
        return newer + sum(self.newest(stage, number, client) is not None for client in range(4))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["round", "round", "prune", "prune", "failed", "killed", "resumed", "stage"]
        ),
        st.integers(0, 2),
        st.sets(st.integers(0, 3), min_size=1),
    ),
    min_size=12,
    max_size=24,
)


@settings(max_examples=30, deadline=None)
@given(STEPS)
def test_every_checkpoint_that_is_kept_finds_its_states(
    steps: list[tuple[str, int, set[int]]],
) -> None:
    names, model = ["a", "b", "c"], Model()
    with tempfile.TemporaryDirectory() as folder:
        states = ClientStates(Path(folder) / FILE_NAME, names)
        for value, (step, back, clients) in enumerate(steps):
            stage, number = model.place
            told = {client: state(value) for client in clients}
            earlier = max((stage, max(number - back, 0)), model.oldest)
            if step == "round":
                states.rewind(names[stage], number)
                states.save(names[stage], number + 1, told)
                states.commit()
                model.place = (stage, number + 1)
                model.save(value, clients)
            elif step in {"failed", "killed"}:
                states.save(names[stage], number + 1, told)
                if step == "killed":
                    states.close()
                    states = ClientStates(Path(folder) / FILE_NAME, names)
                states.rewind(names[stage], number)
            elif step == "resumed":
                states.rewind(names[stage], earlier[1])
                model.rewind(earlier)
            elif step == "stage" and stage + 1 < len(names) and number > 0:
                model.place = (stage + 1, 0)
            elif step == "prune":
                model.oldest = earlier
                states.prune(names[model.oldest[0]], model.oldest[1])
                rows = sqlite3.connect(Path(folder) / FILE_NAME)
                (count,) = rows.execute("SELECT COUNT(*) FROM states").fetchone()
                rows.close()
                assert count == model.needed()
            stage, last = model.place
            for number in range(model.oldest[1] if stage == model.oldest[0] else 0, last + 2):
                expected = {k: model.newest(stage, number, k) for k in range(4)}
                found = values(states.load(names[stage], number, range(4)))
                assert found == {k: v for k, v in expected.items() if v is not None}
        states.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 3)), st.booleans()), min_size=4, max_size=10))
def test_the_states_of_the_best_round_are_spared_until_there_is_a_better(
    rounds: list[tuple[set[int], bool]],
) -> None:
    model, best, bests = Model(), 0, {0: 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        with ClientStates(path, ["train"]) as states:
            for number, (clients, better) in enumerate(rounds, start=1):
                model.place, oldest = (0, number), max(number - 2, 0)
                states.save("train", number, {k: state(number) for k in clients})
                model.save(number, clients)
                best = bests[number] = number if better else best
                states.prune("train", oldest, bests[oldest])
                spared = {best, bests[oldest], *range(oldest, number + 1)} - {0}
                expected = {n: {k: model.newest(0, n, k) for k in range(4)} for n in spared}
                for n, own in expected.items():
                    told = {k: value for k, value in own.items() if value is not None}
                    assert values(states.load("train", n, range(4))) == told
        rows = sqlite3.connect(path)
        (count,) = rows.execute("SELECT COUNT(*) FROM states").fetchone()
        rows.close()
        needed = {(k, value) for own in expected.values() for k, value in own.items() if value}
        assert count == len(needed)


KILLED = """
import os, random, signal, sqlite3, sys, time
from pathlib import Path
import torch
from shared_models.client_states import ClientStates

path, told = Path(sys.argv[1]), Path(sys.argv[2])
CLIENTS = range(240)  # 120 clients with 100 kB in a round: more than the cache of the file

def last():
    return len(told.read_bytes()) if told.exists() else 0

def check(states, number):
    found = states.load("train", number, CLIENTS)
    expected = {k: number - (number - k) % 2 for k in CLIENTS}
    expected = {k: r for k, r in expected.items() if r > 0}
    assert found.keys() == expected.keys(), (number, len(found), len(expected))
    assert all((found[k]["c"]["w"] == r + k).all() for k, r in expected.items()), number

def work():
    with ClientStates(path, ["train"]) as states:
        checkpoints = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        number = last()
        while True:
            states.rewind("train", number)
            number += 1
            for first in range(0, 240, 40):
                block = [k for k in range(first, first + 40) if k % 2 == number % 2]
                whole = {k: {"c": {"w": torch.full((25000,), float(number + k))}} for k in block}
                states.save("train", number, whole)
            states.commit()
            os.write(checkpoints, b".")  # the checkpoint of the round is there
            states.prune("train", max(number - 2, 0))

wait, hot, kills = random.Random(0), 0, 0
while kills < 20 or last() < 4:
    child = os.fork()
    if child == 0:
        work()
    time.sleep(wait.uniform(0.0, 0.02 * kills))  # longer and longer: a busy machine is slow
    kills += 1
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    hot += Path(f"{path}-journal").exists()
    if wait.random() < 0.5:
        continue  # the next child finds it as it is
    with ClientStates(path, ["train"]) as states:
        number = last()
        states.rewind("train", number)
        for kept in range(max(number - 1, 0), number + 1):
            check(states, kept)
        states.commit()
    (whole,) = sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone()
    assert whole == "ok", whole
with ClientStates(path, ["train"]):
    pass  # tidies up after the last child
print(hot, *os.listdir(path.parent))
"""


def test_killed_at_any_moment_all_committed_rounds_are_whole(path: Path) -> None:
    told = path.parent / "told"
    command: list[str | Path] = [sys.executable, "-c", KILLED, path, told]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    hot, *files = done.stdout.split()
    assert int(hot) > 0, "no kill came in the middle of a transaction"
    assert sorted(files) == [FILE_NAME, "told"]


def flip(path: Path, pattern: bytes) -> None:
    content = path.read_bytes()
    assert content.count(pattern) == 1
    path.write_bytes(content.replace(pattern, bytes(byte ^ 1 for byte in pattern)))


def test_a_damaged_state_is_named(path: Path) -> None:
    written(path, {1: 1.0, 7: 0.1234})
    flip(path, torch.full((2,), 0.1234).numpy().tobytes())
    with ClientStates(path, ["train"]) as states:
        assert values(states.load("train", 1, [1])) == {1: 1.0}
        with pytest.raises(
            CheckpointError, match=r"client 7 \(stage 'train', round 1\) is damaged"
        ):
            states.load("train", 1, [7])


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)


def opened_and_read(path: Path) -> None:
    with ClientStates(path, ["train"]) as states:
        states.load("train", 1, range(20))


@pytest.mark.parametrize("damage", [truncated, overwritten])
def test_a_damaged_file_is_one_line(path: Path, damage: object) -> None:
    written(path, dict.fromkeys(range(20), 1.0), size=10_000)
    damage(path)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="damaged") as caught:
        opened_and_read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_of_another_format_is_refused(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 9")
    other.close()
    with pytest.raises(CheckpointError, match="has format 9"):
        ClientStates(path, ["train"])


def test_a_file_that_cannot_be_made_is_one_line(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be opened .*; make its folder writable"):
        ClientStates(path / "no" / "folder", ["train"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_cannot_be_written_is_one_line(path: Path) -> None:
    written(path, {1: 1.0})
    path.chmod(0o400)
    with pytest.raises(CheckpointError, match="cannot be written"):
        written(path, {1: 2.0})


def test_a_full_disk_is_told_as_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_small_disk(*args: object, **options: object) -> sqlite3.Connection:
        file = connect(*args, **options)  # type: ignore[call-overload]
        file.execute("PRAGMA page_size = 16384")
        file.execute("PRAGMA max_page_count = 20")
        return file  # type: ignore[no-any-return]

    connect = sqlite3.connect
    monkeypatch.setattr("shared_models.client_states.sqlite3.connect", on_a_small_disk)
    with pytest.raises(OSError, match="No space left on device") as caught:
        written(path, dict.fromkeys(range(20), 1.0), size=10_000)
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    written(path, {1: 1.0})


def test_the_file_does_not_grow_with_the_rounds(path: Path) -> None:
    sizes = []
    with ClientStates(path, ["train"]) as states:
        for number in range(1, 41):
            cohort = range(number % 4, 80, 4)
            states.save("train", number, {k: state(number, 5000) for k in cohort})
            states.commit()
            states.prune("train", number - 2)
            sizes.append(path.stat().st_size)
    assert sizes[-1] <= 1.05 * sizes[9]


@pytest.mark.slow
def test_a_hundred_thousand_clients_do_not_pile_up_in_memory(path: Path) -> None:
    process = psutil.Process()
    with ClientStates(path, ["train"]) as states:
        states.save("train", 1, {k: state(k, 250) for k in range(1000)})
        before = process.memory_info().rss
        for first in range(1000, 100_000, 1000):
            states.save("train", 1, {k: state(k, 250) for k in range(first, first + 1000)})
        states.commit()
        for first in range(0, 100_000, 5000):
            cohort = range(first, first + 500)
            assert values(states.load("train", 1, cohort)) == {k: float(k) for k in cohort}
        grown = process.memory_info().rss - before
    assert path.stat().st_size > 100_000_000
    assert grown < 40_000_000
