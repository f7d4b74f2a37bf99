"""The wire: what goes in comes out; what is malformed is our error, never something else."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_models.errors import UpdateError
from shared_models.messages import BlockRequest, Hello, Kept
from shared_models.partial import Partial, Row, Sum
from shared_models.wire import (
    decode_arrays,
    decode_hello,
    decode_partial,
    decode_request,
    encode_arrays,
    encode_broadcast,
    encode_hello,
    encode_partial,
    encode_request,
)

ARRAYS = {"encoder.w": torch.randn(2, 3), "head.b": torch.randn(()), "n": torch.tensor([1, 2])}
RAW = "wildflower.raw"
PARTIAL = Partial(
    {"delta": Sum(ARRAYS, 12.0), "stats": Sum({}, 12.0)},
    (Row(3, 12, {"loss": 0.5}), Row(9, 4, {}, "refused", "w: holds NaN")),
    {"delta": {"w": torch.randn(1, 2)}},
    {3: {"control": {"encoder.w": torch.randn(2)}, "personal": {}}},
    ("train", 3, 1),
)


def test_a_hello_survives() -> None:
    hello = Hello((1, 5), (10, 20), True, "abc", {"torch": "2"}, keeps_states=True)
    for own in (hello, replace(hello, labelled=(0, 20))):
        assert decode_hello(encode_hello(own)) == own
    with pytest.raises(UpdateError, match="hello names 2 clients and 1 counts"):
        decode_hello(encode_hello(replace(hello, labelled=(3,))))


def test_the_hello_of_an_older_node_keeps_nothing() -> None:
    content = encode_hello(Hello((1,), (10,), False, "abc", {}, keeps_states=True))
    del content.config_records["hello"]["keeps_states"]
    assert not decode_hello(content).keeps_states


def test_what_nodes_keep_is_named_by_run_and_round() -> None:
    kept = Kept("digits-1a2b", {4: 3, 7: 0})
    request = BlockRequest("train", 4, 0, 1, (4, 7), ARRAYS, kept=kept)
    assert decode_request(encode_request(request, encode_broadcast(request))).kept == kept
    alone = replace(request, client_ids=(7,))
    again = decode_request(encode_request(alone, encode_broadcast(alone)))
    assert again.kept == Kept("digits-1a2b", {7: 0})
    malformed = encode_request(request, encode_broadcast(request))
    malformed.config_records["request"]["since"] = [3]
    with pytest.raises(UpdateError, match="malformed message"):
        decode_request(malformed)


def test_a_request_survives() -> None:
    extras, states = {"control": ARRAYS}, {7: {"control": ARRAYS}}
    request = BlockRequest("train", 3, 0, 1, (4, 7), ARRAYS, None, extras, states)
    again = decode_request(encode_request(request, encode_broadcast(request)))
    assert (again.about, again.block) == (("train", 3, 0), 1)
    torch.testing.assert_close(again.extras, extras, rtol=0, atol=0)
    torch.testing.assert_close(again.states, states, rtol=0, atol=0)
    assert again.client_ids == (4, 7)
    torch.testing.assert_close(again.params, ARRAYS, rtol=0, atol=0)


def test_a_partial_survives() -> None:
    again = decode_partial(encode_partial(PARTIAL))
    torch.testing.assert_close(again.sums["delta"].arrays, ARRAYS, rtol=0, atol=0)
    assert again.sums["stats"] == Sum({}, 12.0)
    assert again.rows[0] == Row(3, 12, {"loss": 0.5})
    torch.testing.assert_close(again.singles, PARTIAL.singles, rtol=0, atol=0)
    torch.testing.assert_close(again.states, PARTIAL.states, rtol=0, atol=0)
    assert again.about == PARTIAL.about
    refused = again.rows[1]
    assert (refused.client_id, refused.status, refused.reason) == (9, "refused", "w: holds NaN")


def broken(change: Callable[[RecordDict], Any]) -> RecordDict:
    content = encode_partial(PARTIAL)
    change(content)
    return content


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("rows"),
        lambda c: c.pop("weights"),
        lambda c: c.pop("sum.delta"),
        lambda c: c["rows"].pop("status"),
        lambda c: c["rows"].update(client_id=[1]),
        lambda c: c["rows"].update(client_id=["a", "b"]),
        lambda c: c["rows"].update(status=["ok", "fine"]),
        lambda c: c["rows"].update(examples=3),
        lambda c: c["weights"].update(delta="many"),
        lambda c: c["sum.delta"].update(w=Array("float32", (2,), RAW, b"short")),
        lambda c: c["sum.delta"].update(w=Array("object", (1,), RAW, bytes(8))),
    ],
)
def test_a_malformed_partial_is_our_error(change: Callable[[RecordDict], Any]) -> None:
    with pytest.raises(UpdateError):
        decode_partial(broken(change))


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_no_bytes_make_the_decoder_do_anything_but_answer_or_refuse(data: bytes) -> None:
    record = ArrayRecord({"w": Array("float32", (76,), RAW, data)})
    content = RecordDict(
        {"rows": ConfigRecord({}), "weights": ConfigRecord({"delta": 1.0}), "sum.delta": record}
    )
    with pytest.raises(UpdateError):
        decode_partial(content)


def test_nothing_is_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.array([object()]), allow_pickle=True)
    array = Array("object", (1,), "numpy.ndarray", file.getvalue())
    with pytest.raises(UpdateError, match="not understood"):
        decode_partial(broken(lambda c: c.array_records["sum.delta"].update(w=array)))


def test_arrays_are_lent_not_copied_until_they_are_pickled() -> None:
    tensor = torch.zeros(3)
    record = encode_arrays({"w": tensor, "n": torch.tensor(1), "none": torch.zeros(0, 2)})
    pickled = pickle.loads(pickle.dumps(record))  # noqa: S301 - our own bytes
    tensor[0] = 5.0
    assert decode_arrays(record)["w"].tolist() == [5.0, 0.0, 0.0]
    assert decode_arrays(pickled)["w"].tolist() == [0.0, 0.0, 0.0]
    assert decode_arrays(pickled)["n"] == 1
    assert decode_arrays(pickled)["none"].shape == (0, 2)
