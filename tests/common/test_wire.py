"""Whatever arrives is hostile: it is refused before anything is done for it."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical import digest, encode
from common.errors import TrustError
from common.keys import SigningKey
from common.statement import HELLO_TYPE, REQUEST_TYPE, Envelope
from common.wire import (
    MAX_ENVELOPE_BYTES,
    Closed,
    Closing,
    Hello,
    Receipt,
    RollCall,
    RoundRequest,
    digest_arrays,
    from_npy,
    pack_arrays,
    unpack_arrays,
)

KEY, STRANGER = SigningKey.from_seed(b"k" * 32), SigningKey.from_seed(b"s" * 32)
A, B, C = "a" * 64, "b" * 64, "c" * 64
HEAD = {"entries": 7, "root": C, "signature": A + B}
REQUEST = RoundRequest(
    client="clinic-a", plan=A, run="d" * 32, incarnation=0, round=3, model=B, nonce="e" * 32, **HEAD
)
RECEIPT = Receipt(
    client="client-1", plan=A, round=3, request=B, intent=C, update=A, **HEAD, consistency=(A, B)
)
HELLO, CALL = Hello("client-1", "e" * 32), RollCall("d" * 32, "e" * 32)
CLOSING = Closing("client-1", "d" * 32, **HEAD)
CLOSED = Closed("client-1", "d" * 32, **HEAD, consistency=())
DOCUMENTS = [REQUEST, RECEIPT, HELLO, CALL, CLOSING, CLOSED]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_signed_document_comes_back(document) -> None:
    assert type(document).verify(document.sign(KEY), KEY.public) == document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_that_another_key_signed_is_refused(document) -> None:
    with pytest.raises(TrustError) as caught:
        type(document).verify(document.sign(STRANGER), KEY.public)
    assert caught.value.code == "bad-signature"


def test_no_altered_byte_of_a_request_is_accepted() -> None:
    good = REQUEST.sign(KEY)
    for position in range(len(good)):
        for flip in (0x01, 0x20):
            data = bytearray(good)
            data[position] ^= flip
            with pytest.raises(TrustError) as caught:
                RoundRequest.verify(bytes(data), KEY.public)
            assert caught.value.code in ("malformed", "bad-signature")


def test_one_kind_of_document_is_never_taken_for_another() -> None:
    for document in DOCUMENTS:
        for kind in {type(other) for other in DOCUMENTS}:
            if kind is not type(document):
                with pytest.raises(TrustError) as caught:
                    kind.verify(document.sign(KEY), KEY.public)
                assert caught.value.code == "malformed"


def test_an_oversized_envelope_is_refused_unread() -> None:
    with pytest.raises(TrustError, match="envelope of") as caught:
        RoundRequest.verify(REQUEST.sign(KEY) + b" " * MAX_ENVELOPE_BYTES, KEY.public)
    assert caught.value.code == "malformed"


FIELDS = {"schema_version": 2, **asdict(REQUEST)}


def without(name: str) -> dict[str, object]:
    return {key: value for key, value in FIELDS.items() if key != name}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        without("nonce"),
        without("schema_version"),
        {**FIELDS, "accuracy": "0.9"},
        {**FIELDS, "schema_version": 1},
        {**FIELDS, "schema_version": True},
        {**FIELDS, "round": "3"},
        {**FIELDS, "round": -1},
        {**FIELDS, "round": True},
        {**FIELDS, "round": 2**31},
        {**FIELDS, "plan": "A" * 64},
        {**FIELDS, "plan": "a" * 31},
        {**FIELDS, "plan": "a" * 65},
        {**FIELDS, "plan": "a" * 64 + "\n"},
        {**FIELDS, "plan": None},
        {**FIELDS, "nonce": ["e" * 32]},
        {**FIELDS, "root": "c" * 32},
        {**FIELDS, "signature": "c" * 64},
        {**FIELDS, "signature": "C" * 128},
    ],
)
def test_a_signed_document_with_other_fields_is_refused(fields) -> None:
    data = Envelope.sign(REQUEST_TYPE, encode(fields), [KEY]).encode()
    with pytest.raises(TrustError, match="signed, but") as caught:
        RoundRequest.verify(data, KEY.public)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("payload", [b"", b"[]", b"{} ", b'{"a":1.0}', b"\xff", pickle.dumps({})])
def test_a_signed_payload_that_is_not_canonical_is_refused(payload: bytes) -> None:
    data = Envelope.sign(REQUEST_TYPE, payload, [KEY]).encode()
    with pytest.raises(TrustError) as caught:
        RoundRequest.verify(data, KEY.public)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("client", ["", "x" * 65, 5, None])
def test_a_client_is_named_by_a_short_text(client: object) -> None:
    payload = encode({"schema_version": 2, "client": client, "nonce": "e" * 32})
    with pytest.raises(TrustError, match="client is malformed"):
        Hello.verify(Envelope.sign(HELLO_TYPE, payload, [KEY]).encode(), KEY.public)


@given(st.binary(max_size=300))
def test_no_bytes_crash_a_reader(data: bytes) -> None:
    with pytest.raises(TrustError) as caught:
        RoundRequest.verify(data, KEY.public)
    assert caught.value.code == "malformed"


def test_a_requests_digest_changes_with_every_field() -> None:
    changed = [
        replace(REQUEST, plan=C),
        replace(REQUEST, run="f" * 32),
        replace(REQUEST, incarnation=1),
        replace(REQUEST, round=4),
        replace(REQUEST, model=C),
        replace(REQUEST, nonce="f" * 32),
    ]
    assert len({request.digest for request in [REQUEST, *changed]}) == 7
    assert REQUEST.digest == digest(encode(asdict(REQUEST)))


# -- arrays ----------------------------------------------------------------------------------------


def saved(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode()
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def header(shape: str, descr: str = "'<f4'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (1, 8, 8), (0,), (3, 0, 2), (1,) * 32])
def test_what_numpy_saves_is_read_back(shape) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    read = from_npy(saved(array))
    assert read.shape == shape
    assert read.dtype == np.float32
    assert np.array_equal(read, array)


HOSTILE = {
    "nothing": b"",
    "magic alone": b"\x93NUMPY\x01\x00",
    "no magic": b"\x93NUMPZ" + saved(np.zeros(3, np.float32))[6:],
    "float64": saved(np.zeros(3)),
    "big endian": saved(np.zeros(3, ">f4")),
    "integers": saved(np.zeros(3, np.int32)),
    "structured": saved(np.zeros(3, [("a", "<f4")])),
    "fortran": saved(np.asfortranarray(np.ones((2, 3), np.float32))),
    "pickle": saved(np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "a pickle's header": npy(header("(1,)", "'|O'"), pickle.dumps([1])),
    "version 2": b"\x93NUMPY\x02\x00" + saved(np.zeros(3, np.float32))[8:],
    "version 3": npy(header("(1,)"), bytes(4), version=b"\x03\x00"),
    "truncated": saved(np.zeros(3, np.float32))[:-1],
    "truncated by an item": saved(np.zeros(3, np.float32))[:-4],
    "trailing": saved(np.zeros(3, np.float32)) + b"\0",
    "trailing item": saved(np.zeros(3, np.float32)) + bytes(4),
    "huge": npy(header("(1000000000000,)"), bytes(4)),
    "huge product": npy(header("(999999999, 999999999, 999999999)"), bytes(4)),
    "huge, times nothing": npy(header("(0, 1000000000000000000)")),
    "beyond 64 bits": npy(header(f"({10**40},)")),
    "wraps round": npy(header("(4294967296, 4294967296, 1)")),
    "negative": npy(header("(-1,)"), bytes(4)),
    "two negatives": npy(header("(-1, -4)"), bytes(16)),
    "65 dimensions": npy(header("(" + "1, " * 64 + "1)"), bytes(4)),
    "40 dimensions": npy(header("(" + "1, " * 39 + "1)"), bytes(4)),
    "Python 2 long": npy(header("(1L,)"), bytes(4)),
    "a float shape": npy(header("(1.0,)"), bytes(4)),
    "a boolean shape": npy(header("(True,)"), bytes(4)),
    "a shape that is no tuple": npy(header("[1]"), bytes(4)),
    "unbalanced": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,", bytes(4)),
    "unhashable": npy("{[]: 1}"),
    "deep": npy("(" * 900),
    "an extra key": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}"),
    "length over the end": b"\x93NUMPY\x01\x00\xff\xff" + header("(1,)").encode(),
    "not ASCII": npy(header("(1,)").replace("<", "é"), bytes(4)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_array_is_refused_without_an_allocation(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TrustError, match="not an array") as caught:
            from_npy(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.code == "malformed"


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_crash_the_array_reader(data: bytes, keep: int) -> None:
    good = saved(np.zeros(8, np.float32))
    for hostile in (data, good[:keep] + data):
        try:
            array = from_npy(hostile)
        except TrustError:
            continue
        assert array.dtype == np.float32
        assert len(hostile) - 4 * array.size <= 1024


def test_an_arrays_digest_changes_with_name_type_shape_and_value() -> None:
    array = np.arange(4, dtype=np.float32)
    variants = [
        {"a": array},
        {"b": array},
        {"a": array.astype(np.float64)},
        {"a": array.view(np.int32)},
        {"a": array.reshape(2, 2)},
        {"a": array.reshape(1, 4)},
        {"a": array + np.float32(1)},
        {"a": np.array([0, 1, 2, np.nextafter(np.float32(3), np.float32(4))], np.float32)},
        {"a": array, "b": array},
        {"a": array[:2], "b": array[2:]},
        {"a": array[:3], "b": array[3:]},
        {"a": np.float32([-0.0, 1, 2, 3])},
        {"a": np.float32(1).reshape(())},
        {"a": np.float32([1])},
        {"a": np.zeros(0, np.float32)},
        {"a": np.zeros((0, 2), np.float32)},
        {},
    ]
    assert len({digest_arrays(arrays) for arrays in variants}) == len(variants)


def test_an_arrays_digest_does_not_depend_on_order_layout_or_byte_order() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    expected = digest_arrays({"a": a, "b": b})
    assert digest_arrays({"b": b, "a": a}) == expected
    assert digest_arrays({"a": np.asfortranarray(a), "b": b}) == expected
    assert digest_arrays({"a": a.astype(">f4"), "b": b}) == expected
    assert digest_arrays({"a": np.repeat(a, 2, axis=1)[:, ::2], "b": b}) == expected


def test_packed_arrays_come_back_with_the_same_digest() -> None:
    arrays = {
        "weight": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "scalar": np.float32(2).reshape(()),
        "empty": np.zeros((0, 3), np.float32),
    }
    again = unpack_arrays(pack_arrays(arrays))
    assert digest_arrays(again) == digest_arrays(arrays)
    assert {name: array.shape for name, array in again.items()} == {
        name: array.shape for name, array in arrays.items()
    }
