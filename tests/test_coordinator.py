"""Rounds: equal to FedAvg on a blackboard, and nothing bad gets in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest
import torch

from clients.host import Host
from clients.training import ClientData, as_batch, batch_indices
from server.cohort import draw_cohort
from server.coordinator import (
    StageRun,
    begin_stage,
    evaluate_round,
    make_requests,
    run_round,
    step,
)
from server.fold import Fold, fold_reply
from server.keeping import kept_on_nodes
from server.population import merge_hellos
from server.sampling import cut_blocks, sample_cohort
from shared_models.arrays import digest
from shared_models.errors import InputError, RoundError
from shared_models.messages import BlockFailure, BlockRequest, Hello, Reply
from shared_models.objectives import Batch
from shared_models.partial import Partial, Row, Sum
from shared_models.randomness import generator
from tests.in_memory import Tamper, opened, send_to
from tests.plain_twin import train_locally, weighted_average

FLOAT64 = "plan.dtype=float64"


def ignore(_: object) -> None:
    """An observer that looks away."""


def first_request(run: StageRun, host: Host) -> BlockRequest:
    about = ("train", 1, 0)
    cohort = draw_cohort(run.config, run.stage, run.population, about)
    return make_requests(run, begin_stage(run, host.task.build(0)), about, cohort.in_time)[0]


def test_a_round_equals_fedavg_on_a_blackboard() -> None:
    config, host, run = opened(FLOAT64, "stages.train.server_optimizer=sgd", "data.clients=11")
    state = begin_stage(run, {n: t.double() for n, t in host.task.build(0).items()})
    result = run_round(run, state, send_to(host), ignore)
    model, training = host.task.model(0).double(), host.training("train")
    models, sizes = [], []
    for client_id in result.cohort:
        data = host.data_of(client_id)
        order = generator(config.seed, "train", 1, client_id, "order")
        own = as_batch(data, training)
        indices = batch_indices(len(data.y), training.epochs, training.batch_size, order)
        batches = [Batch(own.x[index], own.y[index]) for index in indices]
        models.append(train_locally(host.task, model, batches, 0.1))
        sizes.append(len(data.y))
    assert len(set(sizes)) > 1, "unequal clients are part of the claim"
    expected = weighted_average(models, sizes)
    torch.testing.assert_close(result.state.params, expected, rtol=1e-9, atol=1e-12)


def test_fedavgm_equals_its_hand_computed_steps() -> None:
    _, host, run = opened(FLOAT64, "stages.train.server_optimizer=sgd")
    _, _, heavy = opened(FLOAT64, "stages.train.server_momentum=0.5")
    start = {n: t.double() for n, t in host.task.build(0).items()}
    one = run_round(heavy, begin_stage(heavy, start), send_to(host), ignore).state
    two = run_round(heavy, one, send_to(host), ignore).state
    # With the same weights and round, plain FedAvg's step is the mean delta.
    delta1 = run_round(run, begin_stage(run, start), send_to(host), ignore).state.params
    at_one = replace(one, optimizer={})
    delta2 = run_round(run, at_one, send_to(host), ignore).state.params
    for name, initial in start.items():
        velocity = 0.5 * (delta1[name] - initial) + (delta2[name] - one.params[name])
        torch.testing.assert_close(two.params[name], one.params[name] + velocity)


@pytest.mark.parametrize("block_size", [1, 3, 100])
def test_block_size_changes_rounding_only(block_size: int) -> None:
    results = []
    for size in (4, block_size):
        _, host, run = opened(FLOAT64, f"plan.block_size={size}")
        start = {n: t.double() for n, t in host.task.build(0).items()}
        results.append(run_round(run, begin_stage(run, start), send_to(host), ignore).state.params)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


def test_a_round_is_a_function_of_its_state() -> None:
    _, host, run = opened()
    state = begin_stage(run, host.task.build(0))
    once, again = (run_round(run, state, send_to(host), ignore) for _ in range(2))
    assert digest(once.state.params) == digest(again.state.params)


def test_one_bad_client_is_named_and_the_round_goes_on() -> None:
    _, host, run = opened()
    victim = first_request(run, host).client_ids[1]

    def data_of(client_id: int) -> ClientData:
        data = host.data_of(client_id)
        return replace(data, x=data.x * float("nan")) if client_id == victim else data

    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        for request in requests:
            yield host.trainer("train")(request, data_of)

    record = run_round(run, begin_stage(run, host.task.build(0)), send, ignore).record
    assert (record.clients_selected, record.clients_aggregated) == (10, 9)
    (failure,) = record.failures
    assert (failure.client_id, failure.status) == (victim, "refused")
    assert "holds NaN" in failure.reason


def test_a_client_without_data_fails_alone() -> None:
    _, host, run = opened()
    request = first_request(run, host)

    def data_of(client_id: int) -> ClientData:
        if client_id == request.client_ids[0]:
            raise OSError("sensor unplugged")
        return host.data_of(client_id)

    first, *others = host.trainer("train")(request, data_of).rows
    assert (first.status, first.reason) == ("failed", "OSError: sensor unplugged")
    assert all(row.status == "ok" for row in others)


def lie(change: Callable[[Partial], Reply]) -> Tamper:
    """Returns a tamper that applies `change` to the first block's partial."""

    def tamper(request: BlockRequest, reply: Reply) -> Reply:
        assert isinstance(reply, Partial)
        return change(reply) if request.block == 0 else reply

    return tamper


def with_delta(partial: Partial, arrays: dict[str, torch.Tensor]) -> Partial:
    part = partial.sums["delta"]
    return replace(partial, sums={**partial.sums, "delta": Sum(arrays, part.weight)})


def times(partial: Partial, factor: float) -> Partial:
    return with_delta(partial, {n: t * factor for n, t in partial.sums["delta"].arrays.items()})


def claiming(partial: Partial, examples: int) -> Partial:
    rows = tuple(replace(row, examples=examples) for row in partial.rows)
    weight = float(examples * len(rows))
    sums = {name: replace(part, weight=weight) for name, part in partial.sums.items()}
    return replace(partial, rows=rows, sums=sums)


def reporting(partial: Partial, loss: float) -> Partial:
    first, *others = partial.rows
    return replace(partial, rows=(replace(first, metrics={"loss": loss}), *others))


def reshaped(partial: Partial, change: Callable[[torch.Tensor], torch.Tensor]) -> Partial:
    return with_delta(partial, {n: change(t) for n, t in partial.sums["delta"].arrays.items()})


LIES: dict[str, tuple[Callable[[Partial], Reply], str]] = {
    "nan": (lambda p: times(p, float("nan")), "holds NaN"),
    "norm": (lambda p: times(p, 1e9), "norm of the delta"),
    "shape": (lambda p: reshaped(p, torch.flatten), "shape"),
    "dtype": (lambda p: reshaped(p, torch.Tensor.double), "dtype torch.float64"),
    "integers": (lambda p: reshaped(p, torch.Tensor.long), "dtype torch.int64"),
    "missing": (lambda p: with_delta(p, {}), "missing arrays"),
    "weight": (
        lambda p: replace(p, sums={**p.sums, "delta": Sum(p.sums["delta"].arrays, 1e9)}),
        "delta: weight is",
    ),
    "many examples": (lambda p: claiming(p, 10**9), "claims 1000000000 examples, its hello said"),
    "no examples": (lambda p: claiming(p, 0), "claims 0 examples"),
    "negative": (lambda p: claiming(p, -5), "claims -5 examples"),
    "nan loss": (lambda p: reporting(p, float("nan")), "metric loss is nan"),
    "infinite loss": (lambda p: reporting(p, float("inf")), "metric loss is inf"),
    "others": (lambda p: replace(p, rows=(Row(999, 10), *p.rows[1:])), "partial is about clients"),
    "nameless": (lambda p: replace(p, sums={}), "sums are"),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_lying_block_is_refused_whole_and_changes_nothing(kind: str) -> None:
    tell, reason = LIES[kind]
    _, host, run = opened()
    state = begin_stage(run, host.task.build(0))
    lied = run_round(run, state, send_to(host, lie(tell)), ignore)
    assert {failure.status for failure in lied.record.failures} == {"refused"}
    assert len(lied.record.failures) == 4
    assert all(reason in failure.reason for failure in lied.record.failures)
    # The same round in which that block never came back.
    gone = run_round(run, state, send_to(host, lie(lambda _: BlockFailure("gone"))), ignore)
    assert digest(lied.state.params) == digest(gone.state.params)
    assert digest(lied.state.params) != digest(state.params)


def test_reasons_are_one_printable_line() -> None:
    _, host, run = opened()
    bad = BlockFailure("Traceback\n  File\x1b[31m\n" + "x" * 5000)
    state = begin_stage(run, host.task.build(0))
    (first, *_) = run_round(run, state, send_to(host, lie(lambda _: bad)), ignore).record.failures
    assert first.reason.isprintable()
    assert len(first.reason) <= 300


def test_a_model_that_diverges_is_an_error_with_advice() -> None:
    _, host, run = opened()
    run = replace(run, evaluate=lambda _: {"loss": float("nan")})
    result = run_round(run, begin_stage(run, host.task.build(0)), send_to(host), ignore)
    with pytest.raises(RoundError, match=r"round 1: the model diverged .* local_learning_rate"):
        evaluate_round(run, result)


@pytest.mark.parametrize("objective", ["fedavg", "scaffold"])
def test_a_step_to_infinity_is_an_error_though_nobody_evaluates(objective: str) -> None:
    hasty = ("stages.train.server_learning_rate=1e300", "stages.train.server_optimizer=sgd")
    _, host, run = opened(f"stages.train.objective={objective}", *hasty)
    state = begin_stage(run, host.task.build(0))
    with pytest.raises(
        RoundError, match=r"round 1: the model diverged \(\S+ holds NaN or infinite"
    ):
        run_round(run, state, send_to(host), ignore)
    # Values whose squares are infinite are large, no more.
    large = {name: torch.full_like(tensor, 1e30) for name, tensor in host.task.build(0).items()}
    _, host, run = opened("stages.train.server_learning_rate=1e-30")
    fold = Fold(run.parts.aggregator.init())
    for request in make_requests(run, state, ("train", 1, 0), range(10)):
        (reply,) = send_to(host)([request])
        fold = fold_reply(run.parts.aggregator, fold, request, reply)
    step(run, begin_stage(run, large), fold)


def test_a_round_without_any_usable_update_fails_loudly() -> None:
    _, host, run = opened()
    state = begin_stage(run, host.task.build(0))
    with pytest.raises(RoundError, match=r"none of 10 clients .* 3 cohorts; client .* unplugged"):
        run_round(run, state, send_to(host, lambda *_: BlockFailure("unplugged")), ignore)


def test_cohorts_differ_by_round_and_come_sorted() -> None:
    cohorts = [sample_cohort(range(1000), 10, 0, ("train", number, 0)) for number in (1, 2)]
    assert cohorts[0] != cohorts[1]
    assert all(list(cohort) == sorted(set(cohort)) for cohort in cohorts)
    assert sample_cohort(range(5), 10, 0, ("train", 1, 0)) == (0, 1, 2, 3, 4)


def test_every_client_is_drawn_about_equally_often() -> None:
    drawn = torch.zeros(50)
    for number in range(400):
        drawn[list(sample_cohort(range(50), 10, 0, ("train", number, 0)))] += 1
    assert 50 < drawn.min() <= drawn.max() < 115  # 80 expected, 8 is one standard deviation


def test_blocks_of_a_fleet_do_not_depend_on_node_ids() -> None:
    hosted = {0: 11, 1: 22, 2: 11, 3: 22, 4: 11}
    renamed = {client_id: {11: 99, 22: 5}[node] for client_id, node in hosted.items()}
    blocks = [ids for _, ids in cut_blocks(range(5), 2, hosted)]
    assert blocks == [(0, 2), (4,), (1, 3)]
    assert blocks == [ids for _, ids in cut_blocks(range(5), 2, renamed)]


def hello(*ids: int, shared: bool = False, data: str = "a") -> Hello:
    return Hello(ids, tuple(10 for _ in ids), shared, data, {})


def test_the_population_is_the_union_of_what_nodes_host() -> None:
    population = merge_hellos({7: hello(3, 1), 8: hello(2)})
    assert population.client_ids == (1, 2, 3)
    assert population.node_of == {3: 7, 1: 7, 2: 8}
    assert merge_hellos({7: hello(1, 2, shared=True), 8: hello(1, 2, shared=True)}).node_of is None


@pytest.mark.parametrize("choice", ["personal=['head.']", "objective=ditto", "objective=scaffold"])
def test_what_clients_keep_does_not_leave_a_node_that_hosts_them(choice: str) -> None:
    _, host, run = opened(f"stages.train.{choice}")
    own = merge_hellos({1: replace(host.hello(), shared=False)})
    with pytest.raises(
        InputError, match=r"stages\.train: with .* clients keep arrays of their own"
    ):
        kept_on_nodes(replace(run, population=own), "run")
    assert kept_on_nodes(run, None) is run


@pytest.mark.parametrize(
    ("hellos", "message"),
    [
        ({7: hello(1, 2), 8: hello(2)}, "client 2 is claimed by node 7 and node 8"),
        ({7: hello(1), 8: hello(1, shared=True)}, "use one kind"),
        ({7: hello(1, shared=True), 8: hello(1, shared=True, data="b")}, "node 8 sees other data"),
        ({7: hello()}, "no node hosts a client"),
        ({7: Hello((4,), (0,), True, "a", {})}, "node 7: client 4 says it has 0 examples"),
        (
            {7: Hello((4,), (2,), False, "a", {}, labelled=(3,))},
            "node 7: client 4 says that 3 of its 2 examples have a label",
        ),
    ],
)
def test_a_contradictory_population_is_an_error(hellos: dict[int, Hello], message: str) -> None:
    with pytest.raises(RoundError, match=message):
        merge_hellos(hellos)
