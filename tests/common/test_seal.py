"""A seal covers everything that a request is, and counts once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import TrustError
from common.nodekey import NodeKey, NodePublicKey
from common.seal import WINDOW, Replays, Seal, Sealer

BODY = b"what is asked"


@pytest.fixture(scope="module")
def key() -> NodeKey:
    return NodeKey.generate()


def test_a_seal_is_read_back_and_verifies_for_its_own_request_alone(key: NodeKey) -> None:
    seal = Seal.parse(Sealer(key).seal("POST", "/here", BODY))
    right = ("POST", "/here", len(BODY))
    assert seal.signed_by(key.public, *right)
    for wrong in (("GET", *right[1:]), ("POST", "/there", right[2]), ("POST", "/here", 1)):
        assert not seal.signed_by(key.public, *wrong)


@pytest.mark.parametrize("change", [{"epoch": "1" * 32}, {"counter": 7}, {"body": "0" * 64}])
def test_nothing_in_a_seal_can_be_changed(key: NodeKey, change: dict[str, object]) -> None:
    seal = Seal.parse(Sealer(key).seal("POST", "/here", BODY))
    changed = replace(seal, **change)  # type: ignore[arg-type]
    assert not changed.signed_by(key.public, "POST", "/here", len(BODY))


def test_another_keys_seal_does_not_verify(key: NodeKey) -> None:
    other = NodeKey.generate()
    seal = Seal.parse(Sealer(other).seal("POST", "/here", BODY))
    assert not seal.signed_by(key.public, "POST", "/here", len(BODY))


@pytest.mark.parametrize(
    "text",
    ["", "v1", "v2 " + "0" * 64, "v1 " + "0" * 500, "v1 a b c d e", "\n", "v1 " + "é" * 64],
)
def test_what_is_no_seal_is_refused(text: str) -> None:
    with pytest.raises(TrustError):
        Seal.parse(text)


def test_a_seal_of_bad_base64_is_refused(key: NodeKey) -> None:
    good = Sealer(key).seal("POST", "/here", BODY)
    with pytest.raises(TrustError):
        Seal.parse(good[:-3] + "*==")


def test_each_counter_counts_once_in_whatever_order_they_come() -> None:
    replays = Replays()
    numbers = [3, 1, 2, 10, 9, 500, 499]
    assert all(replays.first(number) for number in numbers)
    assert not any(replays.first(number) for number in numbers)
    assert not replays.first(500 - WINDOW)  # too old to know
    assert replays.first(500 - WINDOW + 1)


def test_a_sealer_counts_upwards_and_goes_on_above_what_it_is_told(key: NodeKey) -> None:
    sealer = Sealer(key)
    first, second = (Seal.parse(sealer.seal("POST", "/", b"")) for _ in range(2))
    assert second.counter > first.counter
    assert sealer.learn("a" * 32, str(second.counter + 10**12))
    third = Seal.parse(sealer.seal("POST", "/", b""))
    assert third.counter > second.counter + 10**12
    assert third.epoch == "a" * 32
    assert sealer.learn("a" * 32, "0")  # nothing new: it goes on above its own
    assert Seal.parse(sealer.seal("POST", "/", b"")).counter == third.counter + 1
    assert not sealer.learn("A" * 32, "0")
    assert not sealer.learn("b" * 32, "-1")


def test_a_node_key_has_one_curve_and_one_spelling(key: NodeKey) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    bigger = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for pem in ("", "-----BEGIN PUBLIC KEY-----\n", key.public.pem + "\n", bigger.decode()):
        with pytest.raises(TrustError):
            NodePublicKey(pem)
    assert NodeKey.decode(key.encode()).public == key.public
    for data in (
        b"nothing",
        key.encode()[:-40],
        other.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    ):
        with pytest.raises(TrustError):
            NodeKey.decode(data)
