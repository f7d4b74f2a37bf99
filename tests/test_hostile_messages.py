"""Hostile messages: whatever comes over the wire becomes a value or an `UpdateError`.

While a decoder is at work, nothing is unpickled, compiled, imported or opened: Python's audit
events tell (PEP 578), whatever code it is that would do it.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clients.trainers import TRAINERS
from clients.training import Training, Transform
from deploy.engines.grid import LocalGrid
from server.aggregators.median import median
from server.aggregators.weighted_mean import weighted_mean
from server.app import make_transport
from server.client_evaluation import measure_on_clients
from server.coordinator import begin_stage, run_round
from server.fold import Expected, Fold, check_partial, fold_reply
from server.patience import merged
from shared_models.arrays import Arrays
from shared_models.errors import UpdateError
from shared_models.messages import BlockFailure, BlockRequest, Hello, Reply
from shared_models.objectives import Sums
from shared_models.objectives.choice import MakeObjective
from shared_models.partial import STANDARD_SUMS, Partial, Row, Sum
from shared_models.wire import (
    decode_arrays,
    decode_hello,
    decode_partial,
    decode_request,
    encode_broadcast,
    encode_hello,
    encode_partial,
    encode_request,
)
from tests.in_memory import Kept, Tamper, opened, send_to

T = TypeVar("T")
Change = Callable[[RecordDict], Any]
RAW = "wildflower.raw"

W = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
PARAMS: Arrays = {"encoder.w": W, "norm.mean": torch.ones(2), "head.n": torch.tensor(7)}
STATE = {"personal": {"head.n": torch.tensor(3), "head.b": torch.zeros(2)}}
REQUEST = BlockRequest(
    "train", 3, 1, 0, (3, 9), PARAMS, None, {"control": {"encoder.w": W}}, {3: STATE}
)
ROWS = (Row(3, 12, {"loss": 0.5}), Row(9, 4, {}, "refused", "w: holds NaN"))
SUMMED = Partial(
    {"delta": Sum({"encoder.w": W * 12}, 12.0), "stats": Sum({"norm.mean": torch.ones(2)}, 12.0)},
    ROWS,
    states={3: STATE},
    about=REQUEST.about,
)
SINGLE = Partial(
    {},
    ROWS,
    {"delta": {"encoder.w": W[None]}, "stats": {"norm.mean": torch.ones(1, 2)}},
    {3: STATE},
    REQUEST.about,
)
HELLO = Hello((3, 9), (12, 4), True, "abc", {"torch": "2"})


def expected(*, singles: bool) -> Expected:
    roles: Any = {"encoder.w": "trainable", "norm.mean": "averaged", "head.n": "personal"}
    return Expected(PARAMS, roles, STANDARD_SUMS, {3: 12, 9: 4}, 10.0, singles, STATE)


VALID: Mapping[str, Callable[[], RecordDict]] = {
    "hello": lambda: encode_hello(HELLO),
    "request": lambda: encode_request(REQUEST, encode_broadcast(REQUEST)),
    "summed": lambda: encode_partial(SUMMED),
    "single": lambda: encode_partial(SINGLE),
}
DECODERS: tuple[Callable[[RecordDict], Any], ...] = (decode_hello, decode_request, decode_partial)


class Watch:
    """Notes what happens while it is on; Python never lets go of an audit hook, so it stays."""

    FORBIDDEN = ("pickle.", "marshal.", "exec", "compile", "import", "open", "os.", "socket.")

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, _: tuple[Any, ...]) -> None:
        if self.on and event.startswith(self.FORBIDDEN):
            self.seen.append(event)

    @contextlib.contextmanager
    def nothing_happens(self) -> Iterator[None]:
        self.seen.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False
        assert not self.seen


WATCH = Watch()


def answer(decode: Callable[[RecordDict], T], content: RecordDict) -> T | None:
    """Returns what a decoder makes of a message, None when it refuses."""
    with WATCH.nothing_happens():
        try:
            return decode(content)
        except UpdateError as error:
            told = str(error)
    assert told.isprintable()
    assert len(told) <= 330
    return None


def judge(content: RecordDict) -> None:
    """Decodes a message in every way; what is a partial goes on to the server's check and fold."""
    hello, request, partial = (answer(decode, content) for decode in DECODERS)
    assert hello is None or isinstance(hello, Hello)
    assert request is None or isinstance(request, BlockRequest)
    if partial is not None:
        assert isinstance(partial, Partial)
        for singles in (False, True):
            judge_partial(partial, singles=singles)


def judge_partial(partial: Partial, *, singles: bool) -> None:
    """Whatever passes the check folds to finite means, also twice."""
    try:
        check_partial(partial, REQUEST, expected(singles=singles))
    except UpdateError:
        return
    rule = median() if singles else weighted_mean()
    for reply in (partial, merged([REQUEST, REQUEST], [partial, partial])):
        folded = fold_reply(rule, Fold(rule.init()), REQUEST, reply)
        for arrays in rule.finish(folded.aggregate).values():
            assert all(bool(torch.isfinite(tensor).all()) for tensor in arrays.values())
        json.dumps([[row.metrics, row.reason] for row in folded.rows], allow_nan=False)


# Arbitrary messages, out of the words that decoders look for.

RECORDS = """hello versions request params about rows weights extra.control sum.delta sum.stats sum.
single.delta single. state.3.personal state.03.personal state.3 state.-1.x state.x.y"""
COLUMNS = """client_ids examples shared data_sha256 stage round attempt block client_id status
reason metric.loss metric. delta stats torch"""
record_names = st.sampled_from(RECORDS.split())
column_names = st.sampled_from(COLUMNS.split())
array_names = st.sampled_from(["encoder.w", "norm.mean", "head.n", "head.b", ""])
integers = st.one_of(
    st.sampled_from([0, 1, 3, 9, -1, 2**31, 2**63 - 1, -(2**63), 10**400]), st.integers()
)
scalars: list[st.SearchStrategy[Any]] = [
    integers,
    st.floats(),
    st.one_of(st.sampled_from(["ok", "late", "train"]), st.text(max_size=5)),
    st.binary(max_size=5),
    st.booleans(),
]
values = st.one_of(*scalars, *(st.lists(scalar, max_size=4) for scalar in scalars))
shapes = st.lists(
    st.one_of(st.integers(0, 4), st.sampled_from([-1, -4, 2**31, 2**40, 2**63, 10**30])), max_size=4
)
dtypes = st.one_of(
    st.sampled_from(
        ["float32", "float64", "float16", "int64", "int32", "uint8", "bool", "object", "O", "V8"]
    ),
    st.text(max_size=4),
)
arrays = st.builds(
    lambda dtype, shape, stype, data: Array(dtype, tuple(shape), stype, data),
    dtypes,
    st.one_of(shapes, st.lists(st.just(1), max_size=70)),
    st.sampled_from([RAW, RAW, RAW, "numpy.ndarray", ""]),
    st.one_of(st.binary(max_size=64), st.just(pickle.dumps(np.zeros(1)))),
)
array_records = st.dictionaries(array_names, arrays, max_size=3).map(ArrayRecord)
config_records = st.dictionaries(column_names, values, max_size=6).map(ConfigRecord)
metric_records = st.dictionaries(column_names, st.integers(0, 9), max_size=2).map(
    lambda m: MetricRecord({**m})
)
records = st.one_of(array_records, config_records, metric_records)
contents = st.dictionaries(st.one_of(record_names, st.text(max_size=9)), records, max_size=8)


@settings(deadline=None)
@given(contents)
def test_arbitrary_records_are_a_value_or_refused(content: dict[str, Any]) -> None:
    judge(RecordDict(content))


# Valid messages, changed a little.


@st.composite
def changes(draw: st.DrawFn, content: RecordDict) -> Change:
    """A change of a record, or of an entry in one."""
    name = draw(st.sampled_from(sorted(content)))
    record = content[name]
    kind = draw(st.sampled_from(["drop", "rename", "copy", "replace", "entry", "entry", "entry"]))
    if kind == "replace":
        other = draw(records)
        return lambda c: c.__setitem__(name, other)
    if kind in {"drop", "rename", "copy"}:
        other_name = draw(record_names)
        return lambda c: _moved(c, name, None if kind == "drop" else other_name, kind != "copy")
    if not record:
        return lambda c: c.pop(name, None)
    key = draw(st.sampled_from(sorted(record)))
    if isinstance(record, ArrayRecord):
        new = draw(changed_arrays(record[key]))
    else:
        new = draw(changed_values(record[key]))
    new_key = draw(st.one_of(st.just(key), array_names, column_names))
    return lambda c: _entry(c, name, key, new_key, new)


def _moved(content: RecordDict, name: str, to: str | None, away: bool) -> None:
    if name in content:
        record = content.pop(name) if away else content[name]
        if to is not None:
            content[to] = record


def _entry(content: RecordDict, name: str, key: str, new_key: str, new: Any) -> None:
    record: Any = content.get(name)
    if record is not None and key in record:
        with contextlib.suppress(TypeError):  # by now it is a record of another kind
            record[new_key] = new


@st.composite
def changed_arrays(draw: st.DrawFn, array: Array) -> Array:
    data = bytearray(bytes(array.data))
    if data and draw(st.booleans()):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    data = data[: draw(st.sampled_from([len(data), len(data), 1, 0]))]
    shape = draw(st.one_of(st.just(array.shape), shapes.map(tuple)))
    dtype = draw(st.one_of(st.just(array.dtype), dtypes))
    return Array(dtype, shape, draw(st.sampled_from([array.stype, RAW, "numpy"])), bytes(data))


def changed_values(value: Any) -> st.SearchStrategy[Any]:
    if not isinstance(value, list) or not value:
        return values
    shorter, longer = value[:-1], [*value, value[0]]
    return st.one_of(st.sampled_from([value, value[::-1], shorter, longer]), values)


@pytest.mark.parametrize("kind", VALID)
@settings(deadline=None)
@given(data=st.data())
def test_changed_messages_are_a_value_or_refused(kind: str, data: st.DataObject) -> None:
    content, template = VALID[kind](), VALID[kind]()
    for change in data.draw(st.lists(changes(template), min_size=1, max_size=3)):
        change(content)
    judge(content)


# Valid messages in the bytes of Flower's protobuf, changed a little. Parsing them is Flower's.


def plain(content: RecordDict) -> bytes:
    """Returns the bytes of a message as Flower sends it."""
    again: RecordDict = pickle.loads(pickle.dumps(content))  # noqa: S301 - lent arrays become bytes
    wire: bytes = recorddict_to_proto(again).SerializeToString()
    return wire


WIRE = {kind: plain(make()) for kind, make in VALID.items()}


@st.composite
def damaged(draw: st.DrawFn, wire: bytes) -> bytes:
    place = draw(st.integers(0, len(wire) - 1))
    piece = draw(st.one_of(st.binary(max_size=4), st.sampled_from([wire[place : place + 9], b""])))
    skip = draw(st.sampled_from([0, 1, 1, 1, len(piece), len(wire)]))
    return wire[:place] + piece + wire[place + skip :]


@pytest.mark.parametrize("kind", WIRE)
@settings(deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_a_value_or_refused(kind: str, data: st.DataObject) -> None:
    wire = WIRE[kind]
    for _ in range(data.draw(st.integers(1, 3))):
        wire = data.draw(damaged(wire)) or b"\0"
    judge_bytes(wire)


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b"")
def test_arbitrary_bytes_are_a_value_or_refused(wire: bytes) -> None:
    judge_bytes(wire)


def judge_bytes(wire: bytes) -> None:
    try:
        content = recorddict_from_proto(ProtoRecordDict.FromString(wire))
    except Exception:  # protobuf's or Flower's own, which has no one kind for it
        return
    judge(content)


# What the above would have to be lucky to find.


@pytest.mark.parametrize("kind", VALID)
def test_the_valid_ones_are_valid(kind: str) -> None:
    content = recorddict_from_proto(ProtoRecordDict.FromString(WIRE[kind]))
    decode = {"hello": decode_hello, "request": decode_request}.get(kind, decode_partial)
    value = answer(decode, content)
    assert value is not None
    if isinstance(value, Partial):
        check_partial(value, REQUEST, expected(singles=kind == "single"))
        with pytest.raises(UpdateError, match=r"expected .* updates, got"):
            check_partial(value, REQUEST, expected(singles=kind != "single"))


def test_the_watch_sees_what_it_is_there_for() -> None:
    pickled = pickle.dumps(np.zeros(1))
    with pytest.raises(AssertionError, match=r"pickle\.find_class"), WATCH.nothing_happens():
        pickle.loads(pickled)  # noqa: S301 - our own bytes
    with pytest.raises(AssertionError, match="open"), WATCH.nothing_happens():
        Path(__file__).read_bytes()


@pytest.mark.parametrize(
    "shape", [(2**40,), (2**31, 2**31), (2**63,), (10**30,), (0, 2**62), (-1,), (-1, 2**40)]
)
def test_a_shape_that_is_not_there_takes_no_memory(shape: tuple[int, ...]) -> None:
    record = ArrayRecord({"w": Array("float32", shape, RAW, bytes(16))})
    tracemalloc.start()
    with contextlib.suppress(Exception):
        assert decode_arrays(record)["w"].numel() == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    content = VALID["summed"]()
    content["sum.delta"] = record
    judge(content)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["sum.delta"].update(w=Array("float32", (-1,), RAW, bytes(8))), "its shape is"),
        (lambda c: c["sum.delta"].update(w=Array("bool", (1,), RAW, b"\2")), "neither 0 nor 1"),
        (lambda c: c.update({"state.03.personal": c["state.3.personal"]}), "names no part"),
        (lambda c: c.update({"state.3": c["state.3.personal"]}), "names no part"),
        (lambda c: c.update({"sum.more": c["sum.delta"]}), "there are sums"),
        (lambda c: c["rows"].update({"metric.loss": [0.5, 0.5, 0.5]}), "3 clients report"),
        (lambda c: c["rows"].update(reason=[b"", b""]), "expected str, got bytes"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(change: Change, told: str) -> None:
    content = VALID["summed"]()
    change(content)
    with pytest.raises(UpdateError, match=told):
        decode_partial(content)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("shared", 1, "expected bool, got int"),
        ("data_sha256", 1, "expected str, got int"),
        ("client_ids", [3, 2**63], "more than 64 bits"),
    ],
)
def test_a_hello_is_not_guessed(key: str, value: Any, told: str) -> None:
    content = VALID["hello"]()
    content.config_records["hello"][key] = value
    with pytest.raises(UpdateError, match=told):
        decode_hello(content)


# What passes for a value and would end the run later.

FIRST = 0  # the first client of the first block


def in_first_block(change: Callable[[Partial], Partial]) -> Tamper:
    def tamper(request: BlockRequest, reply: Reply) -> Reply:
        assert isinstance(reply, Partial)
        return change(reply) if request.client_ids[0] == FIRST else reply

    return tamper


SURPRISES: Mapping[str, Callable[[Partial], Partial]] = {
    "singles among sums": lambda p: replace(p, singles={"delta": p.sums["delta"].arrays}),
    "a mean beyond all floats": lambda p: replace(
        p, rows=tuple(replace(row, metrics={"loss": 1e308}) for row in p.rows)
    ),
}


@pytest.mark.parametrize("surprise", SURPRISES)
def test_a_surprise_costs_its_client_not_the_run(surprise: str) -> None:
    _, host, run = opened("stages.train.clients_per_round=12")
    state, send = begin_stage(run, host.task.build(0)), send_to(host)
    hostile = send_to(host, in_first_block(SURPRISES[surprise]))
    record = run_round(run, state, hostile, lambda _: None).record
    (failure,) = record.failures
    assert (failure.client_id, failure.status) == (FIRST, "refused")
    assert record.to_json()
    assert not run_round(run, state, send, lambda _: None).record.failures


def with_values(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Transform:
    """Returns what changes one of a client's sums."""

    def transform(_: BlockRequest, __: int, sums: Sums) -> Sums:
        return {**sums, name: {key: change(tensor) for key, tensor in sums[name].items()}}

    return transform


LIES: Mapping[str, tuple[str, Transform, str]] = {
    "many steps": ("fednova", with_values("steps", lambda t: t * 1e30), "steps: the mean length"),
    "steps back": ("fednova", with_values("steps", lambda t: -t), "steps: the mean length is -"),
    "a step more": ("fednova", with_values("steps", lambda t: t + 1), "steps: the mean length"),
    "a far way": ("fednova", with_values("delta", lambda t: t * 300), "norm of the delta"),
    "a control": ("scaffold", with_values("control", lambda t: t + 1e10), "control tells of"),
    "an infinite norm": ("scaffold", with_values("control", lambda t: t + 1e30), "control tells"),
}


@pytest.mark.parametrize("refused_by", ["client", "server"])
@pytest.mark.parametrize("lie", LIES)
def test_what_an_objective_adds_to_the_update_is_bounded_too(lie: str, refused_by: str) -> None:
    objective, transform, told = LIES[lie]
    wanted = (f"objective={objective}", "clients_per_round=12", "max_update_norm=50")
    _, host, run = opened(*(f"stages.train.{key}" for key in wanted))
    run = replace(run, states=Kept() if objective == "scaffold" else None)
    training = replace(host.training("train"), transforms=(transform,))
    if refused_by == "server":
        training = replace(training, make_objective=unchecked(training))

    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        for request in requests:
            hostile = FIRST in request.client_ids
            trainer = TRAINERS["loop"](training) if hostile else host.trainer("train")
            yield trainer(request, host.data_of)

    record = run_round(run, begin_stage(run, host.task.build(0)), send, lambda _: None).record
    assert FIRST in {failure.client_id for failure in record.failures}
    assert {failure.status for failure in record.failures} == {"refused"}
    assert all(told in failure.reason for failure in record.failures)
    assert record.clients_aggregated == (8 if refused_by == "client" else 11)


def unchecked(training: Training) -> MakeObjective:
    return lambda ground: replace(training.make_objective(ground), check=lambda *_: None)


@pytest.mark.parametrize("objective", ["fednova", "scaffold"])
def test_the_bounds_hold_for_honest_clients_of_unequal_sizes(objective: str) -> None:
    unequal = ("data.partition=dirichlet", "data.alpha=0.3", "stages.train.clients_per_round=12")
    heavy = ("stages.train.local_optimizer=momentum",) if objective == "fednova" else ()
    _, host, run = opened(f"stages.train.objective={objective}", *unequal, *heavy)
    assert len(set(run.population.examples_of.values())) > 6
    run = replace(run, states=Kept() if objective == "scaffold" else None)
    state = begin_stage(run, host.task.build(0))
    for _ in range(2):
        result = run_round(run, state, send_to(host), lambda _: None)
        state = result.state
        assert not result.record.failures


class Forged(LocalGrid):
    """The second of two messages is answered first, in the name of the first as far as one can."""

    engine = "forged"

    def _answer(self, messages: Iterator[Message]) -> Iterator[Message]:
        first, second = messages
        forged = Message(encode_partial(SINGLE), reply_to=second)
        forged.metadata.group_id = "0"
        yield forged
        yield Message(encode_partial(SUMMED), reply_to=first)


def test_nobody_answers_for_another() -> None:
    train = make_transport(Forged({})).train
    mine, other = train([REQUEST, replace(REQUEST, block=1)])
    assert isinstance(mine, Partial)
    assert set(mine.sums) == {"delta", "stats"}
    assert other == BlockFailure("no reply came")


def test_measurements_hold_nothing_but_metrics() -> None:
    _, host, run = opened("evaluate.clients_fraction=1.0")
    result = run_round(run, begin_stage(run, host.task.build(0)), send_to(host), lambda _: None)

    def send(requests: Iterable[BlockRequest]) -> Iterator[Reply]:
        for request in requests:
            partial = host.evaluator("train")(request, host.data_of)
            more = {"delta": Sum({"w": W}, 1.0)} if request.client_ids[0] == FIRST else {}
            yield replace(partial, sums=more)

    rows = measure_on_clients(run, result, send).rows
    assert [row.client_id for row in rows if row.status == "refused"] == [FIRST]
