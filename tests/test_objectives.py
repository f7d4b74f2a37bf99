"""Client objectives: each equal to its paper on a blackboard, over rounds, with what is kept."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clients.host import Host, open_host
from clients.partitions import Dealt
from clients.trainers import TRAINERS
from clients.training import ClientData, as_batch, batch_indices
from server.coordinator import RoundResult, StageRun, begin_stage, make_requests, run_round
from server.state import ServerState
from shared_models.arrays import Arrays, digest, in_dtype
from shared_models.messages import BlockRequest, Reply
from shared_models.objectives import Batch
from shared_models.objectives.fednova import length_of
from shared_models.partial import ClientState, Partial
from shared_models.randomness import generator
from shared_models.task import Task
from tests.in_memory import Kept, config_of, send_to, stage_run
from tests.plain_twin import train_locally, weighted_average
from tests.test_coordinator import ignore

SIZES = (7, 4, 10)  # with batches of 4, 3 and 2: 2, 1 and 3 steps an epoch
RATE = 0.1
NORM = "encoder.norm."
OBJECTIVES = ("fedavg", "fedprox", "scaffold", "fednova", "ditto")


class Normed(nn.Module):
    """A model with running statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        layers = OrderedDict(
            flat=nn.Flatten(), dense=nn.Linear(64, 8), norm=nn.BatchNorm1d(8), relu=nn.ReLU()
        )
        self.encoder, self.head = nn.Sequential(layers), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits


class NormedHost(Host):
    """Trains its own task, whatever the config's stages say."""

    def task_of(self, stage_name: str) -> Task:
        assert stage_name == "train"
        return self.task


@dataclass(frozen=True)
class Federation:
    """Three clients of unequal sizes, two of whom take part in a round, in blocks of one."""

    host: Host
    run: StageRun

    def begin(self) -> ServerState:
        return begin_stage(self.run, in_dtype(self.host.task.build(0), torch.float64))

    def results(self, rounds: int) -> Iterator[RoundResult]:
        state = self.begin()
        for _ in range(rounds):
            result = run_round(self.run, state, send_to(self.host), ignore)
            state = result.state
            yield result

    def kept(self, number: int, client_id: int) -> ClientState:
        assert self.run.states is not None
        return self.run.states.load("train", number, [client_id]).get(client_id, {})

    def model(self) -> nn.Module:
        return self.host.task.model(0).double()

    def batches(self, number: int, client_id: int) -> list[Batch]:
        training = self.host.training("train")
        x, y = as_batch(self.host.data_of(client_id), training)
        order = generator(0, "train", number, client_id, "order")
        steps = batch_indices(len(y), training.epochs, training.batch_size, order)
        return [Batch(x[index], y[index]) for index in steps]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.host.task.loss(model(batch.x), batch.y)


def federation(*overrides: str, sizes: Sequence[int] = SIZES) -> Federation:
    config = config_of(
        "data.clients=3",
        "plan.dtype=float64",
        "plan.block_size=1",
        *(
            f"stages.train.{key}"
            for key in (
                "server_optimizer=sgd",
                "clients_per_round=2",
                "batch_size=4",
                "local_epochs=2",
                *overrides,
            )
        ),
    )
    opened = open_host(config)
    order, bounds = generator(0, "test").permutation(1000), np.cumsum([0, *sizes])
    parts = {own.name: getattr(opened, own.name) for own in fields(opened)}
    parts["task"] = replace(opened.task, make_model=Normed)
    parts["partition"] = Dealt(np.arange(3), order, bounds)
    host = NormedHost(**parts)
    return Federation(host, replace(stage_run(config, host), states=Kept()))


def close(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def moved(model: nn.Module, arrays: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with other arrays; its counters are nobody's mean, and stay."""
    after = copy.deepcopy(model)
    floating = {name: t for name, t in arrays.items() if "tracked" not in name}
    after.load_state_dict({**model.state_dict(), **floating})
    return after


def slope(f: Federation, model: nn.Module, batch: Batch) -> Arrays:
    model.zero_grad()
    f.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def descend(model: nn.Module, gradient: Arrays, rate: float = RATE) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.sub_(rate * gradient[name])


def average(models: Mapping[int, nn.Module]) -> dict[str, Tensor]:
    return weighted_average(list(models.values()), [SIZES[k] for k in models])


@pytest.mark.parametrize(
    ("mu", "personal"),
    [(0.5, "nobody."), (0.0, NORM), (0.5, NORM)],
    ids=["fedprox", "fedbn", "both"],
)
def test_fedprox_and_fedbn_on_a_blackboard(mu: float, personal: str) -> None:
    f = federation(
        *(("objective=fedprox", f"proximal_mu={mu}") if mu else ()),
        *((f'personal=["{personal}"]',) if personal == NORM else ()),
        "local_optimizer=momentum",
        "local_momentum=0.9",
    )
    w = f.model()
    own: dict[int, dict[str, Tensor]] = {}
    for result in f.results(3):
        models = {}
        for k in result.cohort:
            models[k] = local = copy.deepcopy(w)
            local.load_state_dict({**w.state_dict(), **own.get(k, {})})
            optimizer = torch.optim.SGD(local.parameters(), RATE, momentum=0.9)
            server = dict(w.named_parameters())
            for batch in f.batches(result.state.round, k):
                optimizer.zero_grad()
                far = sum(
                    ((parameter - server[name].detach()) ** 2).sum()
                    for name, parameter in local.named_parameters()
                    if not name.startswith(personal)
                )
                whole = f.loss(local, batch) + mu / 2 * far
                whole.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            after = local.state_dict()
            own[k] = {n: t.clone() for n, t in after.items() if n.startswith(personal)}
            close(f.kept(result.state.round, k), {"personal": own[k]} if own[k] else {})
        w = moved(w, {n: t for n, t in average(models).items() if not n.startswith(personal)})
        close(result.state.params, w.state_dict())


def test_scaffold_on_a_blackboard() -> None:
    f = federation("objective=scaffold", "local_schedule=exponential", "local_decay=0.5")
    x = f.model()
    c = {name: torch.zeros_like(p) for name, p in x.named_parameters()}
    own = dict.fromkeys(range(3), c)
    cohorts = set()
    for result in f.results(3):
        eta, cohort = RATE * 0.5 ** (result.state.round - 1), result.cohort
        cohorts.add(cohort)
        models, was = {}, dict(own)
        for k in cohort:
            models[k] = y = copy.deepcopy(x)
            batches = f.batches(result.state.round, k)
            for batch in batches:
                g = slope(f, y, batch)
                descend(y, {n: g[n] - own[k][n] + c[n] for n in g}, eta)
            way = {n: p - y.state_dict()[n] for n, p in x.state_dict().items()}
            own[k] = {n: own[k][n] - c[n] + way[n] / (len(batches) * eta) for n in c}
        share = len(cohort) / 3
        c = {n: c[n] + share * sum(own[k][n] - was[k][n] for k in cohort) / 2 for n in c}
        alike = weighted_average(list(models.values()), [1, 1])
        x = moved(x, {**average(models), **{n: alike[n] for n in c}})
        close(result.state.params, x.state_dict())
        close(result.state.extras, {"control": c})
        for k in cohort:
            close(f.kept(result.state.round, k), {"control": own[k]})
    assert len(cohorts) > 1, "somebody takes part later than others"


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_fednova_on_a_blackboard(rho: float) -> None:
    heavy = ("local_optimizer=momentum", f"local_momentum={rho}") if rho else ()
    f = federation("objective=fednova", *heavy)
    x = f.model()
    for result in f.results(2):
        models, d, a = {}, {}, {}
        for k in result.cohort:
            batches = f.batches(result.state.round, k)
            models[k] = y = copy.deepcopy(x)
            optimizer = torch.optim.SGD(y.parameters(), RATE, momentum=rho)
            for batch in batches:
                optimizer.zero_grad()
                f.loss(y, batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            # The j-th gradient is in this step and, fainter, in all that follow.
            a[k] = sum(rho**i for j in range(len(batches)) for i in range(len(batches) - j))
            start = dict(x.named_parameters())
            d[k] = {n: (start[n] - p).detach() / a[k] for n, p in y.named_parameters()}
        total = sum(SIZES[k] for k in models)
        p = {k: SIZES[k] / total for k in models}
        tau_eff = sum(p[k] * a[k] for k in p)
        names = dict(x.named_parameters())
        steps = {n: t - tau_eff * sum(p[k] * d[k][n] for k in p) for n, t in names.items()}
        x = moved(x, {**average(models), **steps})
        close(result.state.params, x.state_dict())


def test_ditto_on_a_blackboard() -> None:
    f = federation("objective=ditto", "personal_lambda=0.7")
    w = f.model()
    v: dict[int, nn.Module] = {}
    for result in f.results(3):
        number, models = result.state.round, {}
        server = dict(w.named_parameters())
        for k in result.cohort:
            batches = f.batches(number, k)
            models[k] = train_locally(f.host.task, w, batches, RATE)
            own = v.setdefault(k, copy.deepcopy(w))
            for batch in batches:
                g = slope(f, own, batch)
                here = dict(own.named_parameters())
                descend(own, {n: g[n] + 0.7 * (here[n] - server[n]).detach() for n in g})
            close(f.kept(number, k), {"own": own.state_dict()})
        w = moved(w, average(models))
        close(result.state.params, w.state_dict())


Change = tuple[str, ...]
WITHOUT_EFFECT: Mapping[str, tuple[Change, tuple[int, int, int]]] = {
    "fedprox, mu = 0": (("objective=fedprox", "proximal_mu=0"), SIZES),
    "scaffold, controls still 0": (("objective=scaffold", "rounds=1"), (8, 8, 8)),
    "fednova, equal steps": (("objective=fednova",), (8, 6, 7)),
    "ditto, for the shared model": (("objective=ditto", "personal_lambda=0.7"), SIZES),
}


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
@pytest.mark.parametrize("personal", [(), (f'personal=["{NORM}"]',)], ids=["", "personal"])
def test_where_an_objective_has_no_effect_it_is_fedavg(case: str, personal: Change) -> None:
    changes, sizes = WITHOUT_EFFECT[case]
    if personal and "ditto" in case:
        return  # its clients keep a whole model each
    ours, plain = (federation(*c, *personal, sizes=sizes) for c in (changes, ()))
    rounds = 1 if "rounds=1" in changes else 3
    for mine, yours in zip(ours.results(rounds), plain.results(rounds), strict=True):
        torch.testing.assert_close(mine.state.params, yours.state.params, rtol=1e-12, atol=1e-14)
        if "ditto" in case:
            assert digest(mine.state.params) == digest(yours.state.params)
        for k in mine.cohort if personal else ():
            close(*(f.kept(mine.state.round, k)["personal"] for f in (ours, plain)))


def test_ditto_that_is_not_drawn_trains_alone() -> None:
    f = federation("objective=ditto", "personal_lambda=0")
    alone: dict[int, nn.Module] = {}
    w = f.model()
    for result in f.results(3):
        for k in result.cohort:
            batches = f.batches(result.state.round, k)
            alone[k] = train_locally(f.host.task, alone.get(k, w), batches, RATE)
            close(f.kept(result.state.round, k)["own"], alone[k].state_dict())
        w = moved(w, result.state.params)


@given(st.integers(1, 300), st.floats(0.0, 0.999))
def test_the_length_of_a_momentum_clients_way_is_its_gradients_weights(
    tau: int, rho: float
) -> None:
    velocity = length = 0.0
    for _ in range(tau):
        velocity = rho * velocity + 1
        length += velocity
    ours = length_of(torch.tensor(float(tau), dtype=torch.float64), rho)
    assert float(ours) == pytest.approx(length, rel=1e-7)


def train(f: Federation, trainer: str, request: BlockRequest, *, singles: bool = False) -> Partial:
    training = replace(f.host.training("train"), singles=singles)
    return TRAINERS[trainer](training)(request, f.host.data_of)


def whole_request(f: Federation) -> BlockRequest:
    run = replace(f.run, config=config_of("plan.block_size=3"))
    return make_requests(run, f.begin(), ("train", 1, 0), range(3))[0]


@pytest.mark.parametrize("trainer", ["loop", "vectorised"])
@pytest.mark.parametrize("objective", OBJECTIVES[:-1])
def test_personal_arrays_never_leave_their_client(objective: str, trainer: str) -> None:
    f = federation(f"objective={objective}", f'personal=["{NORM}", "head."]')
    request = whole_request(f)
    fresh = train(f, trainer, request)
    names = {name for part in fresh.sums.values() for name in part.arrays}
    assert names <= {"encoder.dense.weight", "encoder.dense.bias", "value"}
    assert set(fresh.states[0]["personal"]) == {
        name for name in request.params if name.startswith((NORM, "head."))
    }
    others = {k: fresh.states[k] for k in (1, 2)}
    odd = {k: {n: 2 * t for n, t in a.items()} for k, a in fresh.states[0].items()}
    one, other = (
        train(
            f, trainer, replace(request, states={**others, 0: own}), singles=objective == "fedavg"
        )
        for own in (fresh.states[0], odd)
    )
    close([other.states[k] for k in (1, 2)], [one.states[k] for k in (1, 2)])
    for name, arrays in one.singles.items():
        close(
            {n: t[1:] for n, t in other.singles[name].items()},
            {n: t[1:] for n, t in arrays.items()},
        )


def test_the_servers_personal_arrays_stay_as_they_began() -> None:
    f = federation("objective=scaffold", f'personal=["{NORM}"]')
    start = f.begin()
    *_, last = f.results(2)
    assert set(last.state.extras["control"]) == {
        n for n, role in f.run.roles.items() if role == "trainable"
    }
    for name, tensor in start.params.items():
        assert torch.equal(last.state.params[name], tensor) == name.startswith(NORM)


@pytest.mark.parametrize(
    "changes", [("objective=ditto",), (f'personal=["{NORM}"]',)], ids=["ditto", "fedbn"]
)
def test_clients_measure_their_own_model(changes: Change) -> None:
    f = federation(*changes)
    *_, last = f.results(2)
    k = last.cohort[0]
    state = f.kept(2, k)
    request = BlockRequest("train", 2, 0, 0, (k,), last.state.params, states={k: state})
    (row,) = f.host.evaluator("train")(request, f.host.data_of).rows
    model = moved(f.model(), {**last.state.params, **state.get("personal", state.get("own", {}))})
    everything = as_batch(f.host.data_of(k), f.host.training("train"))
    expected = float(f.loss(model.eval(), everything).detach())
    assert row.metrics["loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("changes", [("objective=ditto",), ("objective=scaffold",)])
def test_what_a_refused_client_kept_does_not_change(changes: Change) -> None:
    f = federation(*changes, "clients_per_round=3")
    first = next(f.results(1))

    def data_of(client_id: int) -> ClientData:
        data = f.host.data_of(client_id)
        return replace(data, x=data.x * np.nan) if client_id == 1 else data

    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        return (f.host.trainer("train")(request, data_of) for request in requests)

    second = run_round(f.run, first.state, send, ignore)
    assert [failure.client_id for failure in second.record.failures] == [1]
    same = [all_equal(f.kept(1, k), f.kept(2, k)) for k in range(3)]
    assert same == [False, True, False]


def all_equal(one: ClientState, other: ClientState) -> bool:
    return {k: digest(a) for k, a in one.items()} == {k: digest(a) for k, a in other.items()}
