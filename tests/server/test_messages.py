"""Flower messages to plain values, under limits: what is malformed becomes a code, no exception."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from common.wire import MAX_ENVELOPE_BYTES
from server.aggregation.validate import Rejected
from server.messages import read_hello, read_reply, roll_call, round_requests
from tests.world import SHAPES, flower_identity, model

LIMIT = sum(array.nbytes + 1024 for array in model().values())


@pytest.fixture(autouse=True)
def _flower() -> None:
    flower_identity()


def message(content: RecordDict | Error) -> Message:
    asked = Message(RecordDict(), dst_node_id=100, message_type="train")
    return Message(content, reply_to=asked)


def raw(data: bytes) -> Array:
    """An array whose header says one thing and whose bytes are whatever they are."""
    return Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=data)


def npy(array: Any) -> bytes:
    return bytes(Array(np.asarray(array)).data)


def content(**changes: Any) -> RecordDict:
    arrays = {name: Array(value) for name, value in model(0.5).items()} | changes
    return RecordDict(
        {
            "update": ArrayRecord(arrays),
            "receipt": ConfigRecord({"envelope": b"signed"}),
        }
    )


def code(reply: Message, limit: int = LIMIT) -> str:
    with pytest.raises(Rejected) as caught:
        read_reply(reply, limit)
    return caught.value.code


def test_an_honest_reply_is_read() -> None:
    reply = read_reply(message(content()), LIMIT)
    assert reply.receipt == b"signed"
    assert {name: value.shape for name, value in reply.update.items()} == SHAPES
    assert all((value == 0.5).all() for value in reply.update.values())


@pytest.mark.parametrize("weight", [np.nan, 1e9, -399.0, 0.0, np.inf])
def test_a_reply_that_claims_a_weight_is_dropped(weight: float) -> None:
    claimed = content()
    claimed["metrics"] = MetricRecord({"num-examples": weight})
    assert code(message(claimed)) == "malformed"


def test_an_error_is_a_code() -> None:
    assert code(message(Error(code=1, reason="a text from somewhere"))) == "client-error"


def test_a_refusal_keeps_its_code_and_only_if_it_is_one() -> None:
    for given, expected in (
        ("budget-exhausted", "refused-budget-exhausted"),
        ("Budget: 3 records left", "refused"),
        ("a" * 65, "refused"),
        ("", "refused"),
        (7, "refused"),
        (b"forfeited", "refused"),
        (["forfeited"], "refused"),
    ):
        refusal = RecordDict({"refusal": ConfigRecord({"code": given})})  # type: ignore[dict-item]
        assert code(message(refusal)) == expected
    assert code(message(RecordDict({"refusal": ConfigRecord({})}))) == "refused"


class _Exploding:
    """Unpickling this would end the test run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, ("raise SystemExit('a pickle was executed')",)


GOOD = npy(np.zeros(2, np.float32))
HOSTILE: dict[str, Callable[[], RecordDict]] = {
    "nothing": RecordDict,
    "no-receipt": lambda: RecordDict({"update": content().array_records["update"]}),
    "no-update": lambda: RecordDict({"receipt": ConfigRecord({"envelope": b"signed"})}),
    "receipt-is-text": lambda: _receipt("signed"),
    "receipt-is-long": lambda: _receipt(b"x" * (MAX_ENVELOPE_BYTES + 1)),
    "receipt-is-empty-record": lambda: _receipt(None),
    "arrays-as-receipt": lambda: RecordDict({"receipt": content().array_records["update"]}),
    "garbage": lambda: content(bias=raw(b"\x00garbage")),
    "empty": lambda: content(bias=raw(b"")),
    "pickle": lambda: content(bias=raw(pickle.dumps(_Exploding()))),
    "object-array": lambda: content(bias=raw(_object_npy())),
    "claims-30-gib": lambda: content(bias=raw(GOOD.replace(b"(2,), ", b"(8589934592,)"[:6]))),
    "claims-more": lambda: content(bias=raw(GOOD.replace(b"(2,)", b"(9,)"))),
    "negative": lambda: content(bias=raw(GOOD.replace(b"(2,)", b"(-2,"))),
    "longer-than-it-says": lambda: content(bias=raw(GOOD + b"\x00")),
    "shorter-than-it-says": lambda: content(bias=raw(GOOD[:-1])),
    "float16": lambda: content(bias=raw(npy(np.zeros(2, np.float16)))),
    "float64": lambda: content(bias=raw(npy(np.zeros(2, np.float64)))),
    "int64": lambda: content(bias=raw(npy(np.zeros(2, np.int64)))),
    "complex64": lambda: content(bias=raw(npy(np.zeros(2, np.complex64)))),
    "text": lambda: content(bias=raw(npy(np.array(["a", "b"])))),
    "big-endian": lambda: content(bias=raw(npy(np.zeros(2, ">f4")))),
    "short-tuple-as-type": lambda: content(bias=raw(GOOD.replace(b"'<f4'", b"('a',)"[:5]))),
    "header-is-code": lambda: content(bias=raw(GOOD.replace(b"'<f4'", b"1/0  "))),
    "endless-digits": lambda: content(bias=raw(GOOD[:10] + b"9" * len(GOOD[10:]))),
}


def _receipt(value: Any) -> RecordDict:
    record = content()
    record["receipt"] = ConfigRecord({} if value is None else {"envelope": value})
    return record


def _object_npy() -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.array([_Exploding()], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_is_malformed_and_nothing_else(name: str) -> None:
    assert code(message(HOSTILE[name]()), limit=10**6) == "malformed"


def test_more_bytes_than_a_model_has_are_not_even_decoded() -> None:
    big = content(more=Array(np.zeros(100_000, np.float32)))
    assert code(message(big)) == "too-large"


def test_thousands_of_empty_arrays_cannot_pass_as_a_model() -> None:
    many = {f"x{i}": Array(np.zeros(0, np.float32)) for i in range(2000)}
    reply = message(content(**many))
    try:
        assert set(read_reply(reply, LIMIT).update) != set(SHAPES)  # validate drops it by its names
    except Rejected as rejected:
        assert rejected.code in ("too-large", "malformed")


def test_random_damage_never_raises_anything_else() -> None:
    generator = np.random.default_rng(5)
    for _ in range(500):
        data = bytearray(GOOD)
        for position in generator.integers(0, len(data), generator.integers(1, 6)):
            data[position] = int(generator.integers(256))
        cut = int(generator.integers(0, len(data) + 1))
        try:
            reply = read_reply(message(content(bias=raw(bytes(data[:cut])))), LIMIT)
        except Rejected as rejected:
            assert rejected.code == "malformed"
        else:
            assert reply.update["bias"].dtype == np.float32


# -- what is sent --------------------------------------------------------------------------------


def test_every_node_gets_its_own_request_and_the_same_model() -> None:
    one, other = round_requests(
        model(1.0), [(101, b"for-101"), (102, b"for-102")], "round-3", ttl=60.0
    )
    assert (one.metadata.dst_node_id, other.metadata.dst_node_id) == (101, 102)
    assert one.content.config_records["request"]["envelope"] == b"for-101"
    assert other.content.config_records["request"]["envelope"] == b"for-102"
    assert {m.metadata.message_type for m in (one, other)} == {"train"}
    assert {m.metadata.group_id for m in (one, other)} == {"round-3"}
    del one.content.array_records["arrays"]["bias"]  # one node's copy is not another's
    assert set(other.content.array_records["arrays"]) == set(SHAPES)


def test_a_roll_call_is_a_query_and_carries_no_model() -> None:
    (call,) = roll_call(b"who is there", [101], "roll-call", ttl=30.0)
    assert call.metadata.message_type == "query"
    assert set(call.content) == {"roll-call"}


def test_a_hello_is_bytes_or_a_rejection() -> None:
    hello = RecordDict({"hello": ConfigRecord({"envelope": b"hello"})})
    assert read_hello(message(hello)) == b"hello"
    for bad in (
        RecordDict(),
        RecordDict({"hello": ConfigRecord({"envelope": "hello"})}),
        RecordDict({"hello": ConfigRecord({})}),
        RecordDict({"hello": MetricRecord({"envelope": 1})}),
    ):
        with pytest.raises(Rejected):
            read_hello(message(bad))
