"""Every aggregator x every law; then each against its formula in numpy, and against Flower's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.aggregators import Aggregator
from server.aggregators.geometric_median import geometric_median
from server.aggregators.krum import krum, multi_krum
from server.aggregators.median import median
from server.aggregators.trimmed_mean import trimmed_mean
from server.aggregators.weighted_mean import weighted_mean
from shared_models.arrays import Arrays, digest
from shared_models.errors import InputError, RoundError
from shared_models.partial import Partial, Row, Sum

Points: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Client:
    """One client's answer."""

    client_id: int
    examples: int
    update: Mapping[str, Arrays]


some = settings(deadline=None, max_examples=30)

COUNTING = {"weighted mean": weighted_mean(), "geometric median": geometric_median()}
"""Those to whom a client with more examples is more."""
COORDINATE_WISE = {"median": median(), "trimmed mean": trimmed_mean(0.3)}
KRUMS = {
    "krum": krum(0.2),
    "multi-krum": multi_krum(0.2),
    "multi-krum of two": multi_krum(0.2, keep=2),
}
EVERY = COUNTING | COORDINATE_WISE | KRUMS
ROBUST = {name: rule for name, rule in EVERY.items() if name != "weighted mean"}


def over(rules: Mapping[str, Aggregator]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rule", rules.values(), ids=rules)


@st.composite
def cohorts(draw: st.DrawFn) -> list[Client]:
    """Seven or more random clients, no two alike; two of them have less than half the examples."""
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(7, 12))
    ids = source.permutation(100)[:size]
    return [Client(int(i), int(source.integers(3, 6)), random_update(source)) for i in ids]


def random_update(source: np.random.Generator) -> dict[str, Arrays]:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "delta": {"encoder.w": (2, 3), "head.b": (2,), "head.scale": ()},
        "stats": {"norm.mean": (3,)},
    }
    return {
        name: {key: torch.tensor(source.normal(size=shape)) for key, shape in own.items()}
        for name, own in shapes.items()
    }


@st.composite
def scattered(draw: st.DrawFn, least: int = 1) -> list[Client]:
    """Clients with any updates, maybe alike, and any number of examples."""
    number = st.floats(-100, 100, width=32)
    one = st.tuples(st.integers(1, 1000), st.lists(number, min_size=3, max_size=3))
    told = draw(st.lists(one, min_size=least, max_size=8))
    arrays = [torch.tensor(values, dtype=torch.float64) for _, values in told]
    return [
        Client(i, n, {"delta": {"w": own[:2]}, "stats": {"m": own[2]}})
        for i, ((n, _), own) in enumerate(zip(told, arrays, strict=True))
    ]


def any_for(rule: Aggregator) -> st.SearchStrategy[list[Client]]:
    return scattered(7 if rule in KRUMS.values() else 1)


def line(values: Points, name: str = "w") -> list[Client]:
    """A client with one example for each row of `values`."""
    return [
        Client(i, 1, {"delta": {name: torch.tensor(row)}, "stats": {}})
        for i, row in enumerate(values)
    ]


def with_updates(clients: Sequence[Client], change: Callable[[Tensor], Tensor]) -> list[Client]:
    return [replace(client, update=changed(client.update, change)) for client in clients]


def changed(update: Mapping[str, Arrays], change: Callable[[Tensor], Tensor]) -> dict[str, Arrays]:
    return {name: {key: change(t) for key, t in own.items()} for name, own in update.items()}


def partial(rule: Aggregator, clients: Sequence[Client]) -> Partial:
    rows = (Row(500, 0, {}, "failed"), *(Row(c.client_id, c.examples) for c in clients))
    names = clients[0].update
    if rule.needs_singles:
        stacks = {n: _each(clients, n, lambda own, _: torch.stack(own)) for n in names}
        return Partial({}, rows, stacks)
    weight = sum(client.examples for client in clients)
    return Partial({n: Sum(_each(clients, n, _weighted_sum), weight) for n in names}, rows)


def _each(
    clients: Sequence[Client], name: str, of: Callable[[list[Tensor], list[int]], Tensor]
) -> Arrays:
    examples = [client.examples for client in clients]
    keys = clients[0].update[name]
    return {key: of([client.update[name][key] for client in clients], examples) for key in keys}


def _weighted_sum(tensors: list[Tensor], examples: list[int]) -> Tensor:
    return torch.stack([n * t for n, t in zip(examples, tensors, strict=True)]).sum(0)


def aggregate(rule: Aggregator, *blocks: Sequence[Client]) -> Mapping[str, Arrays]:
    state = rule.init()
    for block in blocks:
        state = rule.add(state, partial(rule, block))
    return rule.finish(state)


def close(ours: object, theirs: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def flat(arrays: Arrays) -> Points:
    return cast(Points, torch.cat([t.reshape(-1) for t in arrays.values()]).double().numpy())


def deltas(clients: Sequence[Client]) -> Points:
    return np.stack([flat(client.update["delta"]) for client in clients])


@over(EVERY)
@some
@given(clients=cohorts(), data=st.data())
def test_whose_update_it_is_does_not_matter(
    rule: Aggregator, clients: list[Client], data: st.DataObject
) -> None:
    mixed = data.draw(st.permutations(clients))
    renamed = [
        replace(them, client_id=us.client_id) for us, them in zip(clients, mixed, strict=True)
    ]
    close(aggregate(rule, renamed), aggregate(rule, clients))


@over(EVERY)
@some
@given(data=st.data())
def test_other_partials_in_another_order_give_the_same(
    rule: Aggregator, data: st.DataObject
) -> None:
    clients = data.draw(any_for(rule))
    mixed = data.draw(st.permutations(clients))
    size = data.draw(st.integers(1, len(clients)))
    split = aggregate(rule, *(mixed[at : at + size] for at in range(0, len(mixed), size)))
    whole = aggregate(rule, clients)
    close(split, whole, 1e-11)
    if rule.needs_singles:
        assert [digest(a) for a in split.values()] == [digest(a) for a in whole.values()]


@over(EVERY)
@some
@given(clients=cohorts(), by=st.floats(-100, 100))
def test_updates_moved_together_move_the_aggregate(
    rule: Aggregator, clients: list[Client], by: float
) -> None:
    moved = aggregate(rule, with_updates(clients, lambda t: t + by))
    close(moved, changed(aggregate(rule, clients), lambda t: t + by), 1e-10)


@over(EVERY)
@some
@given(clients=cohorts(), by=st.sampled_from([-30.0, -1.0, 0.1, 7.0, 1e4]))
def test_updates_scaled_together_scale_the_aggregate(
    rule: Aggregator, clients: list[Client], by: float
) -> None:
    larger = aggregate(rule, with_updates(clients, lambda t: t * by))
    close(larger, changed(aggregate(rule, clients), lambda t: t * by))


@over(EVERY)
@some
@given(data=st.data(), by=st.integers(2, 9))
def test_more_examples_for_all_change_nothing(
    rule: Aggregator, data: st.DataObject, by: int
) -> None:
    clients = data.draw(any_for(rule))
    richer = [replace(client, examples=client.examples * by) for client in clients]
    close(aggregate(rule, richer), aggregate(rule, clients), 1e-11)


@over(COORDINATE_WISE | KRUMS)
@some
@given(data=st.data())
def test_most_do_not_count_examples(rule: Aggregator, data: st.DataObject) -> None:
    clients = data.draw(any_for(rule))
    richer = [replace(client, examples=client.client_id + 1) for client in clients]
    close(aggregate(rule, richer), aggregate(rule, clients), 0.0)


@over(EVERY)
@some
@given(clients=cohorts())
def test_equal_updates_give_that_update(rule: Aggregator, clients: list[Client]) -> None:
    alike = [replace(client, update=clients[0].update) for client in clients]
    close(aggregate(rule, alike), clients[0].update)


@over(EVERY)
@some
@given(data=st.data())
def test_the_aggregate_lies_between_the_updates(rule: Aggregator, data: st.DataObject) -> None:
    clients = data.draw(any_for(rule))
    for name, arrays in aggregate(rule, clients).items():
        found, points = flat(arrays), np.stack([flat(c.update[name]) for c in clients])
        assert (points.min(0) - 1e-11 <= found).all()
        assert (found <= points.max(0) + 1e-11).all()


@over(COUNTING | COORDINATE_WISE)
@some
@given(clients=cohorts())
def test_one_alone_gives_its_update(rule: Aggregator, clients: list[Client]) -> None:
    close(aggregate(rule, clients[:1]), clients[0].update)


def reach(rule: Aggregator, honest: list[Client], malicious: list[Client]) -> float:
    """How far from the honest mean the aggregate is; 1 is as far as the furthest honest one."""
    points = deltas(honest)
    centre = points.mean(0)
    found = flat(aggregate(rule, [*malicious, *honest])["delta"])
    furthest = np.linalg.norm(points - centre, axis=1).max()
    return float(np.linalg.norm(found - centre) / furthest)


@st.composite
def attacked(draw: st.DrawFn) -> tuple[list[Client], list[Client]]:
    """Honest clients, and one or two malicious ones who agree, or do not."""
    clients, size = draw(cohorts()), draw(st.sampled_from([1e3, -1e6, 1e12]))
    count = draw(st.integers(1, 2))
    honest, malicious = clients[count:], with_updates(clients[:count], lambda t: t * size)
    if draw(st.booleans()):
        malicious = [replace(client, update=malicious[0].update) for client in malicious]
    return honest, malicious


@over({"geometric median in one turn": geometric_median(1), **ROBUST})
@some
@given(attack=attacked())
def test_a_few_cannot_drag_a_robust_aggregate_away(
    rule: Aggregator, attack: tuple[list[Client], list[Client]]
) -> None:
    assert reach(rule, *attack) < 6


@some
@given(attack=attacked())
def test_one_drags_the_mean_away(attack: tuple[list[Client], list[Client]]) -> None:
    honest, malicious = attack
    assert reach(weighted_mean(), honest, malicious[:1]) > 10


@over(ROBUST)
def test_how_the_model_is_cut_into_arrays_does_not_matter(rule: Aggregator) -> None:
    points = np.random.default_rng(0).normal(size=(7, 200_000)).astype(np.float32)
    whole = aggregate(rule, line(points))["delta"]
    halves = [
        replace(client, update={"delta": dict(zip("ab", _halves(client), strict=True))})
        for client in line(points)
    ]
    close(torch.cat(list(aggregate(rule, halves)["delta"].values())), whole["w"])
    assert whole["w"].dtype == torch.float64


def _halves(client: Client) -> tuple[Tensor, Tensor]:
    whole = client.update["delta"]["w"]
    return whole[:70_000], whole[70_000:]


@over(EVERY)
def test_no_updates_no_aggregate(rule: Aggregator) -> None:
    nobody = rule.add(rule.init(), Partial({}, (Row(1, 0, {}, "failed"),)))
    assert rule.finish(rule.init()) == rule.finish(nobody) == {}


@over(EVERY)
def test_a_model_without_running_statistics_has_none(rule: Aggregator) -> None:
    found = aggregate(rule, line(np.eye(7)))
    assert list(found) == ["delta", "stats"]
    assert found["stats"] == {}


@some
@given(clients=scattered())
def test_median_as_numpy_has_it(clients: list[Client]) -> None:
    found = flat(aggregate(median(), clients)["delta"])
    np.testing.assert_array_equal(found, np.median(deltas(clients), axis=0))


@some
@given(clients=scattered(), fraction=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.49]))
def test_trimmed_mean_by_hand_and_by_flower(clients: list[Client], fraction: float) -> None:
    points = deltas(clients)
    drop = int(fraction * len(points))
    by_hand = np.sort(points, axis=0)[drop : len(points) - drop].mean(0)
    found = flat(aggregate(trimmed_mean(fraction), clients)["delta"])
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found, trim_mean(points, fraction), rtol=0, atol=1e-12)


def test_a_share_that_is_whole_in_decimals_is_whole() -> None:
    points = np.linspace(0, 1, 100)[:, None] ** 2
    found = flat(aggregate(trimmed_mean(0.29), line(points))["delta"])
    np.testing.assert_allclose(found, points[29:71].mean(0))


def best_by_krum(points: Points, malicious: int) -> list[int]:
    """Positions, best first."""
    scores = []
    for i, own in enumerate(points):
        distances = sorted(((own - x) ** 2).sum() for j, x in enumerate(points) if j != i)
        scores.append(sum(distances[: len(points) - malicious - 2]))
    return sorted(range(len(points)), key=lambda i: scores[i])


@some
@given(clients=cohorts(), keep=st.integers(1, 3))
def test_krum_by_hand(clients: list[Client], keep: int) -> None:
    points, malicious = deltas(clients), -(-len(clients) // 5)
    best = best_by_krum(points, malicious)
    stats = np.stack([flat(client.update["stats"]) for client in clients])
    rules = {
        1: krum(0.2),
        keep: multi_krum(0.2, keep),
        len(points) - malicious: multi_krum(0.2, keep=100),
    }
    for count, rule in rules.items():
        found = aggregate(rule, clients)
        for name, own in (("delta", points), ("stats", stats)):
            by_hand = own[best[:count]].mean(0)
            np.testing.assert_allclose(flat(found[name]), by_hand, rtol=0, atol=1e-14)


@some
@given(clients=cohorts())
def test_krum_chooses_whom_flower_chooses(clients: list[Client]) -> None:
    points, malicious = deltas(clients), -(-len(clients) // 5)
    replies = [RecordDict({"arrays": ArrayRecord({"w": Array(point)})}) for point in points]
    chosen = select_multikrum(replies, malicious, len(points) - malicious)
    theirs = np.mean([_only_array(reply) for reply in chosen], axis=0)
    found = flat(aggregate(multi_krum(0.2), clients)["delta"])
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-14)


def _only_array(reply: RecordDict) -> Points:
    return cast(ArrayRecord, reply["arrays"]).to_numpy_ndarrays()[0]


def test_krum_sees_small_differences_of_large_updates() -> None:
    small = np.array([[8.0], [9.0], [1.0], [0.0], [2.0], [16.0], [24.0]])
    large = (1e8 + 8 * small).astype(np.float32)
    krums = aggregate(krum(0.2), line(large))
    assert flat(krums["delta"]) == large[best_by_krum(small, 2)[0]]


def test_krum_lets_the_lowest_id_win_a_tie() -> None:
    clients = list(reversed(line(np.array([[-1.0], [0.5], [-0.5], [1.0], [9.0]]))))
    assert flat(aggregate(krum(0.2), clients)["delta"]) == 0.5


@pytest.mark.parametrize("rule", [krum(0.1), multi_krum(0.1, keep=1)])
def test_krum_refuses_a_cohort_that_is_too_small(rule: Aggregator) -> None:
    assert aggregate(rule, line(np.eye(5)))
    for size in (1, 4):
        with pytest.raises(RoundError, match=f"needs 5 usable.* there are {size}; raise clients_"):
            aggregate(rule, line(np.eye(size)))


def weiszfeld(points: Points, weights: Points, start: Points) -> Iterator[Points]:
    """Yields what every turn finds."""
    while True:
        distances = np.sqrt(((points - start) ** 2).sum(1))
        beta = weights / np.maximum(distances, 1e-6)
        start = (beta[:, None] * points).sum(0) / beta.sum()
        yield start


def examples(clients: Sequence[Client]) -> Points:
    return np.array([client.examples for client in clients], dtype=np.float64)


@some
@given(clients=cohorts())
def test_geometric_median_by_hand(clients: list[Client]) -> None:
    repeated = np.repeat(deltas(clients), [client.examples for client in clients], axis=0)
    points, start = deltas(clients), np.median(repeated, axis=0)
    by_hand = weiszfeld(points, examples(clients), start)
    for turns in (1, 2, 3):
        found = flat(aggregate(geometric_median(turns), clients)["delta"])
        np.testing.assert_allclose(found, next(by_hand), rtol=0, atol=1e-12)


def test_geometric_median_after_many_turns_is_where_more_precise_ones_end() -> None:
    source = np.random.default_rng(3)
    clients = [Client(i, i + 1, random_update(source)) for i in range(9)]
    points, weights = (a.astype(np.longdouble) for a in (deltas(clients), examples(clients)))
    turns = weiszfeld(points, weights, (weights[:, None] * points).sum(0) / weights.sum())
    *_, precise = (next(turns) for _ in range(2000))
    found = flat(aggregate(geometric_median(100), clients)["delta"])
    np.testing.assert_allclose(found, precise.astype(np.float64), rtol=0, atol=1e-10)


@some
@given(clients=cohorts())
def test_no_update_is_nearer_to_all_than_the_geometric_median(clients: list[Client]) -> None:
    points, weights = deltas(clients), examples(clients)

    def cost(point: Points) -> float:
        return float((weights * np.linalg.norm(points - point, axis=1)).sum())

    found = flat(aggregate(geometric_median(), clients)["delta"])
    assert cost(found) <= min(map(cost, points))


def test_running_statistics_take_the_weights_of_the_deltas() -> None:
    points, stats = np.array([[0.0], [1.0], [1.1], [50.0]]), np.array([[4.0], [1.0], [2.0], [9e9]])
    clients = [
        replace(client, update={**client.update, "stats": {"m": torch.tensor(own)}})
        for client, own in zip(line(points), stats, strict=True)
    ]
    beta = 1 / abs(points - np.median(points, axis=0))
    found = aggregate(geometric_median(1), clients)
    assert float(found["stats"]["m"]) == pytest.approx(float((beta * stats).sum() / beta.sum()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trimmed_mean(0.5), "trim_fraction must be at least 0 and less than 0.5, got 0.5"),
        (lambda: krum(-0.1), "byzantine_fraction must be at least 0 and less than 0.5, got -0.1"),
        (lambda: multi_krum(float("nan")), "got nan"),
        (lambda: multi_krum(0.1, keep=0), "keep must be at least 1, got 0"),
        (lambda: geometric_median(0), "got 0 and 1e-06"),
        (lambda: geometric_median(3, 0.0), "got 3 and 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], Aggregator], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
