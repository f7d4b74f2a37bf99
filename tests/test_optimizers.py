"""Optimisers: equal to torch's and to the papers, mappable, and at home in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedYogi
from flwr.serverapp.strategy.fedopt import FedOpt
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import server.optimizers.adam as server_adam
from server.checkpoints import Checkpoint, load_latest, save_checkpoint
from server.optimizers.adagrad import adagrad
from server.optimizers.yogi import yogi
from server.records import RoundRecord, Seconds
from server.state import ServerState
from shared_models.arrays import Arrays, add, cast, digest, scaled, zeros_like
from shared_models.optimizers import Optimizer
from shared_models.optimizers.adam import adam
from shared_models.optimizers.adamw import adamw
from shared_models.optimizers.clip import clip_by_norm
from shared_models.optimizers.momentum import momentum
from shared_models.optimizers.scaled import scaled_by
from shared_models.optimizers.sgd import sgd
from shared_models.schedules import Schedule, constant, cosine, exponential, step, warmup

Torchs: TypeAlias = Callable[[list[Tensor]], torch.optim.Optimizer]

LOCAL: dict[str, tuple[Callable[[float], Optimizer], Torchs]] = {
    "sgd": (sgd, lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (lambda r: momentum(r, 0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "adam": (adam, lambda p: torch.optim.Adam(p, lr=0.1)),
    "adam without momentum": (
        lambda r: adam(r, beta1=0.0),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.999)),
    ),
    "adamw": (lambda r: adamw(r, 0.3), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3)),
}
SERVER: dict[str, Callable[[float], Optimizer]] = {
    "adagrad": adagrad,
    "fedadam": server_adam.adam,
    "yogi": yogi,
}
EVERY = {name: make for name, (make, _) in LOCAL.items()} | SERVER
every_rule = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


def some_arrays(seed: int) -> Arrays:
    source = torch.Generator().manual_seed(seed)
    shapes = {"encoder.w": (3, 2), "head.b": (4,), "head.scale": ()}
    return {
        name: torch.randn(shape, generator=source, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def follow(rule: Optimizer, params: Arrays, gradients: Sequence[Arrays]) -> Arrays:
    state = rule.init(params)
    for gradient in gradients:
        change, state = rule.update(gradient, state, params)
        params = add(params, change)
    return params


def close(ours: object, theirs: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("make", "torchs"), LOCAL.values(), ids=LOCAL)
def test_local_rules_equal_torchs(make: Callable[[float], Optimizer], torchs: Torchs) -> None:
    gradients = [some_arrays(seed) for seed in range(1, 9)]
    theirs = {name: nn.Parameter(tensor) for name, tensor in some_arrays(0).items()}
    optimizer = torchs(list(theirs.values()))
    for gradient in gradients:
        for name, tensor in gradient.items():
            theirs[name].grad = tensor
        optimizer.step()
    close(follow(make(0.1), some_arrays(0), gradients), {n: p.data for n, p in theirs.items()})


@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_clipping_equals_torchs(bound: float) -> None:
    params, gradient = some_arrays(0), some_arrays(1)
    theirs = {name: nn.Parameter(tensor) for name, tensor in params.items()}
    for name, tensor in gradient.items():
        theirs[name].grad = tensor.clone()
    nn.utils.clip_grad_norm_(list(theirs.values()), bound)
    change, _ = clip_by_norm(bound, sgd(1.0)).update(gradient, {}, params)
    # torch divides by the norm plus 1e-6, we by the norm plus 1e-12.
    close(change, {name: -p.grad for name, p in theirs.items() if p.grad is not None}, 1e-6)


def test_in_float32_adams_first_step_is_the_learning_rate() -> None:
    params, gradient = (cast(some_arrays(seed), torch.float32) for seed in (0, 1))
    change = follow(adam(1.0), zeros_like(params), [gradient])
    close(change, {name: -tensor.sign() for name, tensor in gradient.items()}, 1e-6)


@every_rule
def test_a_step_mapped_over_clients_is_every_clients_own(
    make: Callable[[float], Optimizer],
) -> None:
    rule, clients = clip_by_norm(2.0, make(0.1)), range(3)
    starts = [some_arrays(client) for client in clients]
    gradients = [[some_arrays(10 * turn + client) for turn in (1, 2)] for client in clients]
    stacked = [_stacked([own[turn] for own in gradients]) for turn in (0, 1)]
    mapped = torch.func.vmap(lambda params, *own: follow(rule, params, own))(
        _stacked(starts), *stacked
    )
    alone = [follow(rule, *of) for of in zip(starts, gradients, strict=True)]
    close(mapped, _stacked(alone))


def _stacked(parts: Sequence[Arrays]) -> Arrays:
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


@every_rule
@given(factor=st.floats(0.0, 2.0))
def test_a_factor_on_the_step_is_a_factor_on_the_rate(
    make: Callable[[float], Optimizer], factor: float
) -> None:
    gradients = [some_arrays(1), some_arrays(2)]
    outside, inside = scaled_by(factor, make(0.1)), make(factor * 0.1)
    start = some_arrays(0)
    close(follow(outside, start, gradients), follow(inside, start, gradients))
    assert outside.plain_rate == inside.plain_rate


@every_rule
def test_without_a_gradient_nothing_moves(make: Callable[[float], Optimizer]) -> None:
    nothing = zeros_like(some_arrays(0))
    assert digest(follow(make(0.1), nothing, [nothing] * 3)) == digest(nothing)


@every_rule
def test_the_state_survives_a_checkpoint(
    tmp_path: Path, make: Callable[[float], Optimizer]
) -> None:
    rule, params, gradient = make(0.1), some_arrays(0), some_arrays(1)
    _, state = rule.update(gradient, rule.init(params), params)
    record = RoundRecord("t", 1, 1, 1, 0, (), None, None, Seconds(1, 1, 0, 0), 8, 8, 1.0, 0.0)
    saved = Checkpoint(ServerState("t", 1, params, state), record, (1,), (1,))
    save_checkpoint(tmp_path, 0, saved, keep=1)
    loaded = load_latest(tmp_path, pytest.fail)
    assert loaded is not None
    before, after = (rule.update(gradient, own, params) for own in (state, loaded.state.optimizer))
    assert digest(before[0]) == digest(after[0])
    assert {slot: digest(a) for slot, a in before[1].items()} == {
        slot: digest(a) for slot, a in after[1].items()
    }


@pytest.mark.parametrize(
    ("rule", "first_v", "second_v"),
    [
        (adagrad(0.1, 0.5, tau=0.5), 0.25 + 4, 0.25 + 4 + 1),
        (server_adam.adam(0.1, 0.5, 0.75, tau=0.5), 1.1875, 0.75 * 1.1875 + 0.25),
        (yogi(0.1, 0.5, 0.75, tau=0.5), 0.25 + 0.25 * 4, 1.25 - 0.25),
    ],
    ids=SERVER,
)
def test_server_rules_equal_the_hand_computed_steps(
    rule: Optimizer, first_v: float, second_v: float
) -> None:
    deltas = [{"w": torch.tensor(value, dtype=torch.float64)} for value in (2.0, 1.0)]
    moved = follow(rule, zeros_like(deltas[0]), [scaled(delta, -1.0) for delta in deltas])
    first = 0.1 * 1.0 / (math.sqrt(first_v) + 0.5)  # m = 0.5 * 0 + 0.5 * 2
    second = 0.1 * 1.0 / (math.sqrt(second_v) + 0.5)  # m = 0.5 * 1 + 0.5 * 1
    assert float(moved["w"]) == pytest.approx(first + second, rel=1e-12)


def flowers(strategy: FedOpt, params: Arrays, deltas: Sequence[Arrays]) -> Arrays:
    """Lets one of Flower's strategies take the steps, with one client a round."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    for number, delta in enumerate(deltas, start=1):
        strategy.current_arrays = {name: tensor.numpy() for name, tensor in params.items()}
        reached = {name: Array(tensor.numpy()) for name, tensor in add(params, delta).items()}
        content = {"arrays": ArrayRecord(reached), "metrics": MetricRecord({"num-examples": 1})}
        asked = Message(RecordDict(), dst_node_id=1, message_type="train")
        reply = Message(RecordDict(content), reply_to=asked)  # type: ignore[arg-type]
        arrays, _ = strategy.aggregate_train(number, [reply])
        assert arrays is not None
        params = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    return params


FLOWERS: dict[str, tuple[Optimizer, Callable[[], FedOpt]]] = {
    "adagrad": (adagrad(0.1, tau=0.5), lambda: FedAdagrad(eta=0.1, tau=0.5)),
    "fedadam": (server_adam.adam(0.1, tau=0.5), lambda: FedAdam(eta=0.1, tau=0.5)),
    "yogi": (yogi(0.1, tau=0.5), lambda: FedYogi(eta=0.1, tau=0.5)),
}


@pytest.mark.parametrize("name", ["adagrad", "yogi"])
def test_flowers_rules_are_ours_but_for_where_v_begins(name: str) -> None:
    (rule, make), params = FLOWERS[name], some_arrays(0)
    deltas = [some_arrays(seed) for seed in range(1, 5)]
    ours = follow(rule, params, [scaled(delta, -1.0) for delta in deltas])
    theirs = make()
    theirs.v_t = {key: tensor.numpy() for key, tensor in rule.init(params)["v"].items()}
    close(ours, flowers(theirs, params, deltas))
    with pytest.raises(AssertionError):
        close(ours, flowers(make(), params, deltas), 1e-3)


def test_flowers_adam_has_a_factor_on_the_rate_that_the_paper_has_not() -> None:
    (rule, make), params, delta = FLOWERS["fedadam"], some_arrays(0), some_arrays(1)
    theirs = make()
    theirs.v_t = {key: tensor.numpy() for key, tensor in rule.init(params)["v"].items()}
    factor = math.sqrt(1 - 0.99**2) / (1 - 0.9**2)  # in round 1, where Kingma and Ba have power 1
    ours = follow(scaled_by(factor, rule), params, [scaled(delta, -1.0)])
    close(ours, flowers(theirs, params, [delta]))


@pytest.mark.parametrize("name", SERVER)
@given(values=st.lists(st.floats(-1e3, 1e3), max_size=8))
def test_what_divides_a_server_step_stays_positive(name: str, values: list[float]) -> None:
    rule, params = SERVER[name](1.0), {"w": torch.zeros((), dtype=torch.float64)}
    state = rule.init(params)
    for value in values:
        gradient = {"w": torch.tensor(value, dtype=torch.float64)}
        _, state = rule.update(gradient, state, params)
        assert float(state["v"]["w"]) > 0


FALLING = [constant(), exponential(0.9), step(3, 0.5), cosine(9), cosine(9, floor=0.1)]


@pytest.mark.parametrize("schedule", FALLING)
def test_a_schedule_begins_at_one_and_never_rises(schedule: Schedule) -> None:
    factors = [schedule(r) for r in range(1, 12)]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] >= 0


def test_schedules_at_their_corners() -> None:
    assert [step(3, 0.5)(r) for r in (3, 4, 6, 7)] == [1.0, 0.5, 0.5, 0.25]
    assert exponential(0.9)(3) == pytest.approx(0.81)
    assert cosine(10)(10) > 0, "the last round would not train"
    assert cosine(10, floor=0.1)(6) == pytest.approx((1 + 0.1) / 2)
    assert cosine(10, floor=0.1)(11) == cosine(10, floor=0.1)(99) == pytest.approx(0.1)


@pytest.mark.parametrize("inner", FALLING)
def test_after_a_warmup_goes_on_what_would_have_been(inner: Schedule) -> None:
    assert [warmup(4, inner)(r) / inner(r) for r in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]
    assert [warmup(4, inner)(r) for r in range(4, 9)] == [inner(r) for r in range(4, 9)]
    assert [warmup(1, inner)(r) for r in range(1, 9)] == [inner(r) for r in range(1, 9)]
