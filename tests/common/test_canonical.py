"""One value has one sequence of bytes, and nothing else is read."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical import (
    MAX_DEPTH,
    MAX_DOCUMENT_BYTES,
    MAX_INTEGER,
    CanonicalError,
    decode,
    decode_lenient,
    digest,
    encode,
    number,
    parse_number,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_is_encoded_comes_back_equal_and_encodes_to_the_same_bytes(value) -> None:
    data = encode(value)
    assert decode(data) == decode_lenient(data) == value
    assert encode(decode(data)) == data


@given(st.dictionaries(KEYS, VALUES, min_size=2, max_size=4))
def test_the_order_in_which_keys_were_put_in_does_not_matter(value) -> None:
    assert encode(dict(reversed(value.items()))) == encode(value)


def test_the_example_of_rfc_8785_section_3_2_4_is_encoded_as_printed_there() -> None:
    # Without the RFC's floats: numbers are texts here.
    value = {"string": '\u20ac$\u000f\nA\'B"\\\\"/', "literals": [None, True, False]}
    printed = bytes.fromhex(
        "7b 22 6c 69 74 65 72 61 6c 73 22 3a 5b 6e 75 6c 6c 2c 74 72 75 65 2c 66 61 6c 73 65 5d 2c"
        "22 73 74 72 69 6e 67 22 3a 22 e2 82 ac 24 5c 75 30 30 30 66 5c 6e 41 27 42 5c 22 5c 5c 5c"
        "5c 5c 22 2f 22 7d"
    )
    assert encode(value) == printed


def test_keys_are_sorted_as_in_rfc_8785_section_3_2_3() -> None:
    # U+1F600 (first UTF-16 unit D83D) comes before U+FB33; by code points it would come after.
    names = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    data = encode(dict.fromkeys(reversed(names)))
    assert list(json.loads(data)) == names
    with pytest.raises(CanonicalError, match="canonical form"):
        decode('{"\ufb33":1,"\U0001f600":1}'.encode())


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1.5}',
        b'{"a":1e2}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":9007199254740992}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
        b"[]",
        b'"a"',
        b"1",
        b"null",
        b"",
        b"{",
        b"{}{}",
        b'{"a":' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(data: bytes) -> None:
    for reader in (decode, decode_lenient):
        with pytest.raises(CanonicalError):
            reader(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}',
        b'{"b":1,"a":1}',
        b"{}\n",
        b" {}",
        b'{"a":"\\u0041"}',
        b'{"a":"\\/"}',
        b'{"a":-0}',
        b'{"a":"\\u000A"}',
    ],
)
def test_another_spelling_is_read_only_where_a_person_may_have_written_it(data: bytes) -> None:
    with pytest.raises(CanonicalError, match="canonical form"):
        decode(data)
    assert decode_lenient(data) == json.loads(data)


def test_an_oversized_document_is_refused_before_it_is_parsed() -> None:
    data = b'{"a":"' + b"x" * MAX_DOCUMENT_BYTES + b'"}'
    for reader in (decode, decode_lenient):
        with pytest.raises(CanonicalError, match="over"):
            reader(data)


@pytest.mark.parametrize(
    "value",
    [1.0, {"a": 0.5}, math.nan, {1: "a"}, {"a": b"bytes"}, {"a": {1, 2}}, {"a": MAX_INTEGER + 1}],
)
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(CanonicalError):
        encode(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_comes_back_to_the_same_bits(value: float) -> None:
    assert struct.pack(">d", parse_number(number(value))) == struct.pack(">d", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_written(value: float) -> None:
    with pytest.raises(CanonicalError):
        number(value)


@pytest.mark.parametrize(
    "text",
    ["1", "1.", "1.00", "01.0", "+1.0", " 1.0", "1.0 ", "1_0.0", "1E5", "1e5", "0.10", "nan", "inf"]
    + ["1e999", "", "٣.٠", "0x1p0", "1.0" + "0" * 40, 1.0, 1, None, True, ["1.0"]],
)
def test_only_the_canonical_spelling_of_a_number_is_accepted(text: object) -> None:
    with pytest.raises(CanonicalError):
        parse_number(text)


def test_a_digest_is_sha_256_of_the_bytes() -> None:
    # FIPS 180-4, example "abc".
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
