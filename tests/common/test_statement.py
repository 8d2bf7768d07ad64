"""Nothing is believed before it is verified, and a signature counts for one kind of document."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.canonical import encode
from common.errors import TrustError
from common.keys import SigningKey
from common.statement import (
    INTOTO_TYPE,
    MAX_SIGNATURES,
    PLAN_TYPE,
    REQUEST_TYPE,
    Envelope,
    pae,
    privacy_statement,
    read_privacy_statement,
)

ONE, OTHER, STRANGER = (SigningKey.from_seed(bytes([i]) * 32) for i in range(3))
KEYS = (ONE.public, OTHER.public)
SHA = "ab" * 32


def test_the_encoding_that_is_signed_is_the_protocols_example() -> None:
    # DSSE protocol.md: PAE("http://example.com/HelloWorld", "hello world").
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == expected
    assert pae("é", b"") == "DSSEv1 2 é 0 ".encode()


@given(st.text(max_size=8), st.binary(max_size=8), st.text(max_size=8), st.binary(max_size=8))
def test_no_two_documents_are_signed_as_the_same_bytes(kind, payload, kind2, payload2) -> None:
    try:
        kind.encode(), kind2.encode()
    except UnicodeEncodeError:
        return
    assert (pae(kind, payload) == pae(kind2, payload2)) == ((kind, payload) == (kind2, payload2))


def test_an_envelope_travels_and_verifies() -> None:
    envelope = Envelope.sign(PLAN_TYPE, b"payload", [ONE, OTHER])
    again = Envelope.decode(envelope.encode())
    assert again == envelope
    assert again.verify(PLAN_TYPE, KEYS, 2) == b"payload"


def test_a_cosigner_adds_to_a_threshold() -> None:
    proposal = Envelope.sign(INTOTO_TYPE, b"p", [ONE])
    with pytest.raises(TrustError, match="1 of 2"):
        proposal.verify(INTOTO_TYPE, KEYS, 2)
    assert proposal.with_signature(OTHER).verify(INTOTO_TYPE, KEYS, 2) == b"p"


def test_a_signature_over_one_type_is_not_one_over_another() -> None:
    envelope = Envelope.sign(PLAN_TYPE, b"p", [ONE])
    with pytest.raises(TrustError, match="signed as"):
        envelope.verify(REQUEST_TYPE, KEYS)
    relabelled = Envelope(REQUEST_TYPE, b"p", envelope.signatures)
    with pytest.raises(TrustError, match="0 of 1"):
        relabelled.verify(REQUEST_TYPE, KEYS)


def test_one_key_counts_once_however_often_it_signs() -> None:
    envelope = Envelope.sign(PLAN_TYPE, b"p", [ONE, ONE, ONE])
    for keys in (KEYS, (ONE.public, ONE.public)):
        with pytest.raises(TrustError, match="1 of 2"):
            envelope.verify(PLAN_TYPE, keys, 2)


def test_a_stranger_or_a_borrowed_key_id_does_not_count() -> None:
    envelope = Envelope.sign(PLAN_TYPE, b"p", [STRANGER])
    borrowed = Envelope(PLAN_TYPE, b"p", ((ONE.public.fingerprint, envelope.signatures[0][1]),))
    swapped = Envelope.sign(PLAN_TYPE, b"p", [ONE, OTHER])
    (a, sig_a), (b, sig_b) = swapped.signatures
    crossed = Envelope(PLAN_TYPE, b"p", ((a, sig_b), (b, sig_a)))
    for forged in (envelope, borrowed, crossed):
        with pytest.raises(TrustError) as caught:
            forged.verify(PLAN_TYPE, KEYS)
        assert caught.value.code == "bad-signature"
    with pytest.raises(TrustError):
        Envelope.sign(PLAN_TYPE, b"p", [ONE]).verify(PLAN_TYPE, [])


def test_an_altered_payload_is_refused() -> None:
    envelope = Envelope.sign(PLAN_TYPE, b"payload", [ONE])
    for payload in (b"Payload", b"payload ", b""):
        with pytest.raises(TrustError):
            Envelope(PLAN_TYPE, payload, envelope.signatures).verify(PLAN_TYPE, KEYS)


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_of_nobody_is_refused(threshold: int) -> None:
    with pytest.raises(TrustError, match="trusts anybody"):
        Envelope.sign(PLAN_TYPE, b"p", [ONE]).verify(PLAN_TYPE, KEYS, threshold)


def test_no_single_altered_byte_of_an_envelope_is_accepted() -> None:
    good = Envelope.sign(PLAN_TYPE, b'{"a":1}', [ONE]).encode()
    for position in range(len(good)):
        for flip in (0x01, 0x02, 0x20, 0x80):
            data = bytearray(good)
            data[position] ^= flip
            with pytest.raises(TrustError):
                Envelope.decode(bytes(data)).verify(PLAN_TYPE, [ONE.public])


SIGNATURE = {"keyid": "k", "sig": "QUJD"}
GOOD = {"payload": "QUJD", "payloadType": "t", "signatures": [SIGNATURE]}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {**GOOD, "more": 1},
        {"payload": "QUJD", "signatures": [SIGNATURE]},
        {**GOOD, "payloadType": 1},
        {**GOOD, "payload": 1},
        {**GOOD, "payload": "QUJ"},
        {**GOOD, "payload": "QR=="},
        {**GOOD, "signatures": []},
        {**GOOD, "signatures": {}},
        {**GOOD, "signatures": None},
        {**GOOD, "signatures": [SIGNATURE] * (MAX_SIGNATURES + 1)},
        {**GOOD, "signatures": ["x"]},
        {**GOOD, "signatures": [{"keyid": 1, "sig": "QUJD"}]},
        {**GOOD, "signatures": [{"keyid": "k"}]},
    ],
)
def test_what_is_not_an_envelope_is_refused(document: object) -> None:
    with pytest.raises(TrustError):
        Envelope.decode(json.dumps(document).encode())


def test_half_of_a_surrogate_pair_is_refused_and_does_not_crash() -> None:
    data = json.dumps({**GOOD, "payloadType": "\ud800"}).encode()
    with pytest.raises(TrustError):
        Envelope.decode(data).verify(PLAN_TYPE, KEYS)


@given(st.binary(max_size=200))
def test_no_bytes_crash_an_envelope(data: bytes) -> None:
    with pytest.raises(TrustError):
        Envelope.decode(data)


# -- in-toto ---------------------------------------------------------------------------------------


def test_a_privacy_statement_is_an_in_toto_statement_v1_and_comes_back() -> None:
    payload = privacy_statement({"b": SHA, "a": SHA}, {"epsilon": "1.0"})
    document = json.loads(payload)
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["subject"] == [
        {"name": "a", "digest": {"sha256": SHA}},
        {"name": "b", "digest": {"sha256": SHA}},
    ]
    assert read_privacy_statement(payload) == ({"a": SHA, "b": SHA}, {"epsilon": "1.0"})


def statement(**changes: object) -> bytes:
    return json.dumps({**json.loads(privacy_statement({"a": SHA}, {})), **changes}).encode()


SUBJECT = {"name": "a", "digest": {"sha256": SHA}}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        statement(_type="x"),
        statement(predicateType="x"),
        statement(subject=None),
        statement(subject=[]),
        statement(subject=["a"]),
        statement(subject=[{"name": "a"}]),
        statement(subject=[{"name": "a", "digest": {"sha256": 1}}]),
        statement(subject=[{"name": 1, "digest": {"sha256": SHA}}]),
        statement(subject=[{"name": ["a"], "digest": {"sha256": SHA}}]),
        statement(subject=[SUBJECT, SUBJECT]),
        statement(predicate=None),
        statement(predicate=[]),
        statement(predicate={"epsilon": 1.5}),
        statement().replace(b'"predicate": {}', b'"predicate": {}, "predicate": {}'),
    ],
)
def test_a_malformed_privacy_statement_is_refused(payload: bytes) -> None:
    with pytest.raises(TrustError):
        read_privacy_statement(payload)


def test_the_payload_stays_as_it_was_signed() -> None:
    payload = encode({"z": 1, "a": "é"})
    document = json.loads(Envelope.sign(PLAN_TYPE, payload, [ONE]).encode())
    assert base64.b64decode(document["payload"]) == payload
