"""Faults: each is detected or tolerated, only the culprit is named, and the round goes on."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.faults import FATES, SETUPS, Survived, passed, table, wrong_in
from clients.app import app
from clients.faults import spoil_updates
from clients.host import Host
from clients.training import ClientData, DataOf
from deploy.cli import run as command
from deploy.engines.inline import InlineGrid
from deploy.simulate import simulate
from server.cohort import draw_cohort
from server.coordinator import RoundResult, StageRun, begin_stage, quorum, run_round
from server.events import Event, Notice
from server.plain import describe_round
from server.records import Failure, Injected, RoundRecord
from server.run_folder import RunFolder
from shared_models.arrays import Arrays, digest, in_dtype, size_bytes
from shared_models.config import Config, Faults, to_toml
from shared_models.config.faults import FAULT_KINDS
from shared_models.errors import RoundError
from shared_models.faults import fault_of
from shared_models.messages import BlockFailure, BlockRequest, Reply
from shared_models.partial import Partial
from tests.conftest import ROOT
from tests.in_memory import Kept, config_of, opened, send_to
from tests.test_runs import lines_of, wildflower

VICTIM = 3
ROUND_1 = ("train", 1, 0)
TRAINERS = ("loop", "reused", "fused", "low_rank", "vectorised")
# Those that spoil an update in a way that the client's own check sees.
SPOILT = ("nan", "inf", "wrong_shape", "wrong_dtype", "missing_key", "huge_norm")
ALL_TEN = ("data.clients=10", "stages.train.server_optimizer=sgd", "plan.dtype=float64")
DEADLINE = "stages.train.round_deadline_s=30.0"


def ignore(_: object) -> None:
    """An observer that looks away."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A task that `low_rank` can train, as overrides: 93 examples, made up."""
    path, rng = tmp_path_factory.mktemp("dense") / "own.npz", np.random.default_rng(0)
    np.savez(path, x=rng.random((93, 28, 28), np.float32), y=rng.integers(10, size=93))
    return ("task=mnist-2nn", f"data.name={path}", "evaluate.data=none")


@pytest.fixture(params=TRAINERS)
def trained(request: pytest.FixtureRequest, dense: tuple[str, ...]) -> tuple[str, ...]:
    """Ten clients who all take part, and who trains them, as overrides."""
    task = dense if request.param == "low_rank" else ()
    return (*ALL_TEN, *task, f"plan.trainer={request.param}")


def start(host: Host) -> Arrays:
    return in_dtype(host.task.build(0), torch.float64)


def first_round(host: Host, run: StageRun) -> RoundResult:
    return run_round(run, begin_stage(run, start(host)), send_to(host), ignore)


def updates_of(host: Host, data_of: DataOf) -> dict[int, Arrays]:
    """Returns the update of every client in round 1, by client id."""
    request = BlockRequest(*ROUND_1, 0, host.client_ids, start(host))
    partial = host.trainer("train")(request, data_of)
    assert all(row.status == "ok" for row in partial.rows)
    deltas = partial.singles["delta"]
    return {
        client_id: {name: own[place] for name, own in deltas.items()}
        for place, client_id in enumerate(host.client_ids)
    }


def mean_of(updates: Mapping[int, Arrays], sizes: Mapping[int, int]) -> Arrays:
    """Returns the mean over examples, on a blackboard."""
    total = sum(sizes[client_id] for client_id in updates)
    return {
        name: torch.stack([sizes[k] / total * own[name] for k, own in updates.items()]).sum(0)
        for name in next(iter(updates.values()))
    }


def test_who_suffers_is_a_pure_function_that_differs_by_round_and_attempt() -> None:
    rounds = (ROUND_1, ROUND_1, ("train", 2, 0), ("train", 1, 1), ("tune", 1, 0))
    one, same, *others = (
        [fault_of(Faults(any=0.5), 0, about, client_id) for client_id in range(50)]
        for about in rounds
    )
    assert one == same
    assert all(one != other for other in others)
    assert one != [fault_of(Faults(any=0.5), 1, ROUND_1, client_id) for client_id in range(50)]


def test_shares_are_probabilities_and_any_draws_all_kinds_alike() -> None:
    def count(faults: Faults) -> Counter[str | None]:
        return Counter(fault_of(faults, 0, ROUND_1, client_id) for client_id in range(5200))

    assert 434 < count(Faults(nan=0.1))["nan"] < 606  # 520 expected, 22 is a standard deviation
    found = count(Faults(any=0.5))
    assert 2456 < found.pop(None) < 2744  # 2600, 36
    assert set(found) == set(FAULT_KINDS)
    assert all(144 < times < 256 for times in found.values())  # 200, 14


def test_listed_clients_suffer_always_and_others_never() -> None:
    faults = Faults(inf=(2, 5), crash=(5,))
    for number in range(20):
        found = [fault_of(faults, 0, ("train", number, 0), client_id) for client_id in range(8)]
        assert found == [None, None, "inf", None, None, "crash", None, None]


def test_the_document_tells_the_fate_of_every_fault() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    rows = re.findall(r"(?m)^\| `(\w+)` \| [^|]+ \| (failed|late|refused|tolerated) \|", text)
    assert rows == [(kind, FATES[kind].outcome) for kind in FAULT_KINDS]


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_only_the_culprit_is_lost_and_the_others_count_as_ever(
    kind: str, trained: tuple[str, ...]
) -> None:
    _, host, run = opened(*trained, DEADLINE, f"faults.{kind}=[{VICTIM}]")
    result, fate = first_round(host, run), FATES[kind]
    lost = [Failure(VICTIM, fate.outcome, "")] if fate.outcome != "tolerated" else []
    assert result.record.injected == (Injected(VICTIM, kind, fate.outcome),)
    assert [replace(failure, reason="") for failure in result.record.failures] == lost
    assert all(fate.reason in failure.reason for failure in result.record.failures)
    assert result.record.clients_aggregated == 10 - len(lost)
    _, clean, _ = opened(*trained, "stages.train.aggregator=median")

    def flipped(client_id: int) -> ClientData:
        data = clean.data_of(client_id)
        return replace(data, y=9 - data.y) if client_id == VICTIM else data

    updates = updates_of(clean, flipped if kind == "label_flip" else clean.data_of)
    if kind == "sign_flip":
        updates[VICTIM] = {name: -own for name, own in updates[VICTIM].items()}
    if lost:
        del updates[VICTIM]
    moved = {name: result.state.params[name] - own for name, own in start(host).items()}
    expected = mean_of(updates, run.population.examples_of)
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-12)


def test_a_block_in_which_nobody_suffers_has_the_same_bytes(trained: tuple[str, ...]) -> None:
    _, clean, _ = opened(*trained)
    _, faulty, _ = opened(*trained, f"faults.nan=[{VICTIM}]")
    request = BlockRequest(*ROUND_1, 0, (0, 1, 2, 4), start(clean))
    one, other = (host.trainer("train")(request, host.data_of) for host in (clean, faulty))
    assert digest(one.sums["delta"].arrays) == digest(other.sums["delta"].arrays)


def test_culprits_in_one_block_are_told_apart() -> None:
    kinds = ("duplicate_reply", "stale_reply", "nan", "crash")
    faults = [f"faults.{kind}=[{client_id}]" for client_id, kind in enumerate(kinds)]
    _, host, run = opened(*ALL_TEN, "plan.block_size=10", *faults)
    record = first_round(host, run).record
    told = [Injected(k, kind, FATES[kind].outcome) for k, kind in enumerate(kinds)]
    assert list(record.injected) == told
    assert [failure.client_id for failure in record.failures] == [0, 1, 2, 3]
    assert record.clients_aggregated == 6


@pytest.mark.parametrize("kind", SPOILT)
def test_a_trainers_own_memory_stays_as_it_was(kind: str) -> None:
    delta = {"w": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(3)}
    before = {name: tensor.clone() for name, tensor in delta.items()}
    spoil = spoil_updates(Faults.model_validate({kind: (0,)}), 0)
    spoilt = spoil(BlockRequest(*ROUND_1, 0, (0,), {}), 0, {"delta": delta, "stats": {}})
    assert all(delta[name].equal(tensor) for name, tensor in before.items())
    assert spoilt["delta"] is not delta


@pytest.mark.parametrize("kind", SPOILT)
def test_updates_are_spoilt_before_they_are_clipped(kind: str) -> None:
    clip = ("stages.train.aggregator=clipped_mean", "stages.train.clip_norm=0.01")
    _, host, run = opened(*ALL_TEN, *clip, f"faults.{kind}=[{VICTIM}]")
    record = first_round(host, run).record
    outcome = "tolerated" if kind == "huge_norm" else "refused"
    assert record.injected == (Injected(VICTIM, kind, outcome),)
    assert len(record.failures) == (outcome == "refused")


def test_a_delay_that_no_deadline_ends_is_waited_for_and_changes_no_byte() -> None:
    _, host, run = opened(*ALL_TEN)
    clean = first_round(host, run)
    _, host, run = opened(*ALL_TEN, f"faults.delay=[{VICTIM}]", "faults.delay_s=7.5")
    late = first_round(host, run)
    assert (clean.record.waited_s, late.record.waited_s) == (None, 7.5)
    assert late.record.injected == (Injected(VICTIM, "delay", "tolerated"),)
    assert digest(clean.state.params) == digest(late.state.params)


# Twelve are asked, ten are wanted. How many are slow, the deadline, then: how many count, how many
# are late, for how many of these there is a reason, and for how long the server waits.
WAITS = [
    (2, 30.0, (10, 2, 0, 0.0)),
    (3, 30.0, (10, 2, 0, 20.0)),
    (3, 10.0, (9, 3, 3, 10.0)),
    (0, 10.0, (10, 2, 0, None)),
]


@pytest.mark.parametrize(("slow", "deadline", "expected"), WAITS)
def test_over_selection_takes_the_first_that_suffice(
    slow: int, deadline: float, expected: tuple[object, ...]
) -> None:
    _, host, run = opened(
        "stages.train.over_selection=1.2",
        f"stages.train.round_deadline_s={deadline}",
        f"faults.delay={list(range(slow))}",
        "faults.delay_s=20.0",
    )
    one, again = (
        run_round(run, begin_stage(run, host.task.build(0)), send_to(host), ignore)
        for _ in range(2)
    )
    record = one.record
    found = record.clients_aggregated, record.clients_late, len(record.failures), record.waited_s
    assert found == expected
    assert record.clients_failed == 0
    assert record.clients_selected == 12
    assert digest(one.state.params) == digest(again.state.params)
    assert told(one.record) == told(again.record)


def told(record: RoundRecord) -> dict[str, object]:
    """Returns what a record says, but for the time, memory and bytes that it took."""
    varies = {"seconds", "time", "rss_mb", "eval"}
    values = json.loads(record.to_json())
    return {key: value for key, value in values.items() if key not in varies}


def test_one_who_is_lost_is_made_up_for_by_one_who_was_asked_too() -> None:
    _, host, run = opened("stages.train.over_selection=1.2")
    first = draw_cohort(run.config, run.stage, run.population, ROUND_1).in_time[0]
    _, host, run = opened("stages.train.over_selection=1.2", f"faults.nan=[{first}]")
    record = run_round(run, begin_stage(run, host.task.build(0)), send_to(host), ignore).record
    assert (record.clients_aggregated, record.clients_late) == (10, 1)
    assert [failure.client_id for failure in record.failures] == [first]


def test_one_who_suffers_but_is_not_needed_is_late() -> None:
    _, host, run = opened("stages.train.over_selection=1.2")
    last = draw_cohort(run.config, run.stage, run.population, ROUND_1).in_time[-1]
    _, host, run = opened("stages.train.over_selection=1.2", f"faults.nan=[{last}]")
    record = run_round(run, begin_stage(run, host.task.build(0)), send_to(host), ignore).record
    assert record.injected == (Injected(last, "nan", "late"),)
    assert (record.failures, record.clients_late) == ((), 2)


SMALL = ("stages.train.clients_per_round=3", "stages.train.min_fraction=1.0")


def test_below_its_quorum_a_round_begins_anew_with_another_cohort() -> None:
    _, host, run = opened(*SMALL)
    victim = draw_cohort(run.config, run.stage, run.population, ROUND_1).in_time[0]
    crash = f"faults.crash=[{victim}]"
    _, host, run = opened(*SMALL, crash, "stages.train.max_attempts=9")
    said: list[Event] = []
    state = begin_stage(run, host.task.build(0))
    record = run_round(run, state, send_to(host), said.append).record
    assert record.attempts > 1
    assert record.clients_aggregated == 3
    assert {failure.client_id for failure in record.failures} == {victim}
    assert len(record.failures) == len(record.injected) == record.attempts - 1
    notices = [event.text for event in said if isinstance(event, Notice)]
    told = "round 1: 2 of 3 clients sent a usable update, the quorum is 3; asking a new cohort"
    assert notices == [told] * (record.attempts - 1)


def test_everybody_who_was_asked_is_counted_once() -> None:
    all_at_once = ("data.clients=40", "stages.train.min_fraction=0.9", DEADLINE)
    faults = ("faults.crash=0.15", "faults.delay=0.2", "faults.nan=0.1", "faults.sign_flip=0.1")
    more = ("stages.train.over_selection=1.4", "stages.train.max_attempts=20")
    for seed in range(4):
        _, host, run = opened(f"seed={seed}", *all_at_once, *faults, *more)
        state = begin_stage(run, host.task.build(0))
        record = run_round(run, state, send_to(host), ignore).record
        lost = (record.clients_failed, record.clients_late, record.clients_discarded)
        assert record.clients_selected == 14 * record.attempts
        assert record.clients_selected == record.clients_aggregated + sum(lost)
        statuses = Counter(failure.status for failure in record.failures)
        assert statuses["failed"] + statuses["refused"] == record.clients_failed
        assert statuses["late"] <= record.clients_late
        assert bool(record.clients_discarded) == (record.attempts > 1)
        words = [f"{record.clients_late} late", f"{statuses['failed']} failed"]
        assert all(word in describe_round(record) for word in words if not word.startswith("0"))


def test_a_good_update_in_vain_is_discarded() -> None:
    _, host, run = opened(*SMALL)
    crashes, flips, _ = draw_cohort(run.config, run.stage, run.population, ROUND_1).in_time
    faults = (f"faults.crash=[{crashes}]", f"faults.sign_flip=[{flips}]")
    _, host, run = opened(*SMALL, *faults, "stages.train.max_attempts=9")
    record = run_round(run, begin_stage(run, host.task.build(0)), send_to(host), ignore).record
    assert Injected(flips, "sign_flip", "discarded") in record.injected
    assert record.clients_discarded == 2 * (record.attempts - 1)


def test_an_attempt_below_its_quorum_keeps_no_updates() -> None:
    _, host, run = opened("stages.train.aggregator=median", "stages.train.max_attempts=5")
    alive: list[int] = []
    updates: list[weakref.ref[torch.Tensor]] = []

    def crash(request: BlockRequest, reply: Reply) -> Reply:
        gc.collect()
        alive.append(sum(ref() is not None for ref in updates))
        assert isinstance(reply, Partial)
        updates.append(weakref.ref(next(iter(reply.singles["delta"].values()))))
        return reply if request.block == 0 and request.attempt < 4 else BlockFailure("gone")

    with pytest.raises(RoundError, match="in 5 cohorts"):
        run_round(run, begin_stage(run, host.task.build(0)), send_to(host, crash), ignore)
    assert max(alive) <= 3, alive


def test_what_is_sent_again_and_what_clients_keep_is_counted() -> None:
    _, host, run = opened("stages.train.objective=scaffold")
    run = replace(run, states=Kept())
    state = begin_stage(run, host.task.build(0))
    first = run_round(run, state, send_to(host), ignore)
    model = size_bytes(state.params)
    assert first.record.bytes_down == 3 * 2 * model  # three blocks, weights and the control
    second = run_round(run, first.state, send_to(host), ignore).record
    assert second.bytes_down > 3 * 2 * model

    def cut_off(request: BlockRequest, reply: Reply) -> Reply:
        return reply if len(request.client_ids) == 1 else BlockFailure("gone")

    again = run_round(run, state, send_to(host, cut_off), ignore).record
    assert again.bytes_down == (3 + 10) * 2 * model


def test_when_no_cohort_suffices_the_error_says_how_many_were_missing_and_why() -> None:
    _, host, run = opened(*SMALL, "faults.crash=1.0", "stages.train.max_attempts=2")
    state = begin_stage(run, host.task.build(0))
    pattern = r"none of 3 .* quorum is 3, in 2 cohorts; client \d+: .*injected crash; mend"
    with pytest.raises(RoundError, match=pattern):
        run_round(run, state, send_to(host), ignore)


def test_a_share_that_is_whole_in_decimals_is_no_client_more() -> None:
    # In binary, 0.07 times 100 is 7.000000000000001.
    wanted = ("data.clients=100", "stages.train.clients_per_round=100")
    _, _, run = opened(*wanted, "stages.train.min_fraction=0.07")
    assert quorum(run) == 7


def test_a_clocks_doing_is_told_although_all_came_back_in_the_end() -> None:
    _, host, run = opened()

    def cut_off(request: BlockRequest, reply: Reply) -> Reply:
        alone = len(request.client_ids) == 1
        return reply if alone else BlockFailure("cut off after 3 s", timed_out=True)

    state = begin_stage(run, host.task.build(0))
    record = run_round(run, state, send_to(host, cut_off), ignore).record
    assert (record.clients_aggregated, record.repeatable) == (10, False)


def test_a_line_for_people_counts_the_lost_and_explains_what_nobody_injected() -> None:
    _, host, run = opened(*ALL_TEN, "faults.nan=[0]", "faults.crash=[1]")
    record = first_round(host, run).record
    assert describe_round(record).endswith(" s, 1 failed, 1 refused")
    real = Failure(5, "failed", "OSError: unplugged")
    record = replace(record, failures=(*record.failures, real), clients_late=2)
    line = describe_round(record)
    assert line.endswith(" s, 2 failed, 2 late, 1 refused, client 5 failed: OSError: unplugged")
    alike = tuple(Failure(k, "failed", "no reply within 9 s") for k in (2, 3, 6, 7))
    line = describe_round(replace(record, failures=(*record.failures, *alike)))
    assert line.endswith(", clients 2, 3, 6 and 1 more failed: no reply within 9 s")


def run_inline(config: Config, path: Path) -> RunFolder:
    grid = InlineGrid(app, {"config": to_toml(config)})
    return simulate(config, path, ignore, grid, resume=False)


def test_the_benchmark_sees_what_a_record_gets_wrong(tmp_path: Path) -> None:
    config = replace(SETUPS["digits-cnn"], rounds=2, rate=0.6).config("any")
    folder = run_inline(config, tmp_path / "run")
    assert not list(wrong_in(folder, config))
    (stage,) = folder.summary()["stages"]
    faults = [fault for record in folder.records() for fault in record.injected]
    assert {kind: row["injected"] for kind, row in stage["faults"].items()} == Counter(
        fault.kind for fault in faults
    )
    for kind, row in stage["faults"].items():
        assert row[FATES[kind].outcome] == row["injected"]
    first, *others = folder.records()
    forged = [replace(first, injected=first.injected[1:]), *others]
    folder.metrics_file.write_text("".join(record.to_json() + "\n" for record in forged))
    (line,) = wrong_in(folder, config)
    assert line.startswith("round 1: injected is")


def test_a_run_passes_only_if_it_is_finite_accurate_and_near_the_clean_one() -> None:
    clean = Survived("none", 0.95, finite=True, faults={}, wrong=(), seconds=1.0)
    assert passed(replace(clean, kind="nan", accuracy=0.931), clean)
    bad = [replace(clean, finite=False), replace(clean, wrong=("one",))]
    bad.append(replace(clean, accuracy=0.929))
    assert not any(passed(run, clean) for run in bad)
    lines = table(clean, bad).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["passed", *["FAILED"] * 3]


def test_below_its_quorum_a_run_ends_with_one_line_and_goes_on_when_faults_are_mended(
    digits_toml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # With this seed half of the clients are too many in round 3.
    faulty = ("seed=1", "faults.crash=0.5", "stages.train.max_attempts=1")
    settings = [word for setting in faulty for word in ("-s", setting)]
    done = wildflower("simulate", digits_toml, "--out", out, *settings)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(
        "error: stage 'train', round 3: 3 of 10 clients sent a usable update, the quorum is 5"
    )
    assert line.endswith("injected crash; mend the cause and go on with --resume")
    safe, config = lines_of(out), (out / "config.toml").read_text()
    done = wildflower("simulate", out, "--resume", "-s", "faults.crash=0.0")
    assert done.returncode == 0, done.stderr
    assert (out / "config.toml").read_text() == config
    assert lines_of(out)[:2] == safe
    rounds = [json.loads(line) for line in lines_of(out)]
    assert [one["clients_aggregated"] for one in rounds] == [7, 8, 10, 10]
    assert [len(one["injected"]) for one in rounds] == [3, 2, 0, 0]
    (stage,) = RunFolder(out).summary()["stages"]
    assert stage["faults"] == {
        "crash": {
            "injected": 5,
            "refused": 0,
            "failed": 5,
            "late": 0,
            "tolerated": 0,
            "discarded": 0,
        }
    }


def test_the_example_of_the_document_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"(?s)```toml\n(.*?)```", (ROOT / "docs" / "faults.md").read_text())
    (tmp_path / "run.toml").write_text(f'task = "digits-cnn"\ndata.clients = 20\n{example}')
    plan = ("-s", "plan.trainer=fused", "-s", "plan.block_size=5")
    out = tmp_path / "run"
    assert command(["simulate", str(tmp_path / "run.toml"), "--out", str(out), *plan]) == 0
    records = RunFolder(out).records()
    assert {record.clients_selected for record in records} == {13}
    assert {record.attempts for record in records} == {1}
    assert min(record.clients_aggregated for record in records) >= 5
    slow = {f.client_id for record in records for f in record.injected if f.kind == "delay"}
    assert slow >= {VICTIM, 7}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_inline_and_ray_suffer_the_same_and_make_the_same_bytes(tmp_path: Path) -> None:
    from deploy.simulate import open_grid

    config = config_of("faults.any=0.4", DEADLINE, "stages.train.aggregator=median")
    inline = run_inline(config, tmp_path / "inline")
    spread = config.model_copy(update={"engine": "ray", "workers": 2})
    with open_grid(spread) as grid:
        ray = simulate(spread, tmp_path / "ray", ignore, grid, resume=False)
    assert inline.model_file.read_bytes() == ray.model_file.read_bytes()
    assert [told(record) for record in inline.records()] == [told(r) for r in ray.records()]
    assert sum(len(record.injected) for record in inline.records()) > 8
