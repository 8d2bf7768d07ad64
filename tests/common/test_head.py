"""A head is a C2SP note with two signatures, and has one spelling."""

from __future__ import annotations

import base64
import hashlib

import pytest

from common.errors import TrustError
from common.keys import SigningKey
from common.ledger import Head, SignedHead, merkle
from common.ledger.head import CLIENT, COORDINATOR, MAX_NOTE_BYTES

OWNER, SERVER = SigningKey.from_seed(b"o" * 32), SigningKey.from_seed(b"s" * 32)
HEAD = Head(SERVER.public.fingerprint, "c" * 32, 7, merkle.root([b"x" * 32] * 7).hex())
KEYS = {CLIENT: OWNER.public, COORDINATOR: SERVER.public}


def note() -> SignedHead:
    signed = SignedHead.of(HEAD).with_signature(CLIENT, OWNER.public, HEAD.sign(OWNER))
    return signed.with_signature(COORDINATOR, SERVER.public, HEAD.sign(SERVER))


def test_a_note_is_read_by_the_rules_of_c2sp() -> None:
    """c2sp.org/signed-note: text, an empty line, then name, key id and Ed25519 signature."""
    text, _, tail = note().encode().decode().partition("\n\n")
    origin, size, root = text.split("\n")
    assert origin == f"privet/ledger/{HEAD.federation}/{HEAD.client}"
    assert (size, base64.b64decode(root).hex()) == ("7", HEAD.root)
    for line, (name, key) in zip(tail.splitlines(), KEYS.items(), strict=True):
        dash, named, blob = line.split(" ")
        raw = base64.b64decode(blob)
        assert (dash, named) == ("—", name)
        assert raw[:4] == hashlib.sha256(name.encode() + b"\n\x01" + key.raw).digest()[:4]
        assert key.verify(raw[4:], text.encode() + b"\n")


def test_a_note_comes_back_and_verifies() -> None:
    again = SignedHead.decode(note().encode())
    assert again == note()
    assert again.verify(KEYS) == HEAD


def test_no_altered_byte_of_a_note_is_accepted() -> None:
    good = note().encode()
    for position in range(len(good)):
        for flip in (0x01, 0x20, 0x80):
            data = bytearray(good)
            data[position] ^= flip
            with pytest.raises(TrustError):
                SignedHead.decode(bytes(data)).verify(KEYS)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"\xff", note().encode()[:-1], note().encode() + b"\n", b"x" * MAX_NOTE_BYTES]
    + [note().encode() * 9, note().encode().replace(b"\n7\n", b"\n07\n")]
    + [note().encode().replace(b"\n7\n", "\n٧\n".encode())]
    + [note().encode().replace(b"ledger", b"log")],
)
def test_what_is_no_note_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError, match="signed ledger head"):
        SignedHead.decode(data)


def test_both_must_have_signed_this_head() -> None:
    alone = SignedHead.of(HEAD).with_signature(CLIENT, OWNER.public, HEAD.sign(OWNER))
    with pytest.raises(TrustError, match="not signed by the coordinator"):
        alone.verify(KEYS)
    forged = alone.with_signature(COORDINATOR, SERVER.public, HEAD.sign(OWNER))
    with pytest.raises(TrustError, match="not signed by the coordinator"):
        forged.verify(KEYS)
    swapped = {CLIENT: SERVER.public, COORDINATOR: OWNER.public}
    with pytest.raises(TrustError, match="not signed by the client"):
        note().verify(swapped)
