"""Private keys stay in a directory that only their owner can read; identities cannot be linked."""

from __future__ import annotations

import base64
import hmac
import os
from pathlib import Path

import pytest

from common.canonical import digest
from common.errors import OperationError, TrustError
from common.keys import Identity, KeyDirectory, PublicKey, SigningKey, b64


def snapshot(path: Path) -> dict[str, tuple[bytes, int]]:
    return {
        file.relative_to(path).as_posix(): (file.read_bytes(), file.stat().st_mode)
        for file in path.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        # RFC 8032, section 7.1, tests 1 and 2.
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_keys_sign_as_rfc_8032_prints_it(seed, public, message, signature) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public.raw.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert key.public.verify(bytes.fromhex(signature), bytes.fromhex(message))
    assert not key.public.verify(bytes.fromhex(signature), b"another message")


def test_a_signature_with_any_bit_flipped_is_not_valid() -> None:
    key = SigningKey.generate()
    signature = key.sign(b"m")
    for position in range(8 * len(signature)):
        broken = bytearray(signature)
        broken[position // 8] ^= 1 << position % 8
        assert not key.public.verify(bytes(broken), b"m")
    for length in (0, 63, 65):
        assert not key.public.verify((signature + b"\0")[:length], b"m")


def test_a_fingerprint_is_sha_256_of_the_public_bytes() -> None:
    key = SigningKey.generate().public
    assert key.fingerprint == digest(key.raw)
    assert PublicKey.from_text(key.text()) == key


def test_a_key_never_prints_its_secret(tmp_path: Path) -> None:
    secret = KeyDirectory(tmp_path / "keys").create_secret("a")
    key = KeyDirectory(tmp_path / "keys").load("a")
    assert secret.hex() not in repr(key)
    assert base64.b64encode(secret).decode() not in repr(key)
    assert key.public.fingerprint[:12] in repr(key)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_public_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(TrustError):
        PublicKey(bytes(length))


@pytest.mark.parametrize(
    "text",
    [None, 1, b"QUJD", "QUJ", "QUJD=", "QUJD\n", " QUJD", "QU-_", "QÜJD", "====", "QR==", "QUF="],
)
def test_base64_has_one_spelling(text: object) -> None:
    # The last two hold bits that no byte needs: an altered character that would change nothing.
    with pytest.raises(TrustError, match="base64"):
        b64(text)


def test_base64_comes_back() -> None:
    assert b64(base64.b64encode(b"some bytes").decode()) == b"some bytes"
    assert b64("") == b""


# -- the directory ---------------------------------------------------------------------------------


def test_keys_are_born_unreadable_for_others_and_come_back(tmp_path: Path) -> None:
    directory = KeyDirectory(tmp_path / "deep" / "keys")
    key = directory.create("coordinator")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert (directory.path / "coordinator").stat().st_mode & 0o777 == 0o600
    assert directory.load("coordinator").public == key.public
    assert [file.name for file in directory.path.iterdir()] == ["coordinator"]


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    directory = KeyDirectory(tmp_path / "keys")
    directory.create("a")
    before = snapshot(tmp_path)
    with pytest.raises(OperationError, match="already a key") as caught:
        directory.create("a")
    assert caught.value.code == "key-exists"
    assert snapshot(tmp_path) == before


def test_a_signature_is_known_by_making_it_again() -> None:
    key, message = SigningKey.from_seed(bytes(32)), b"how far it came"
    signature = key.sign(message)
    assert key.signed(signature, message)
    assert key.public.verify(signature, message)
    assert not key.signed(signature, message + b".")
    assert not key.signed(signature[:-1] + bytes([signature[-1] ^ 1]), message)
    assert not key.signed(b"", message)


def test_a_pipe_in_a_keys_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    directory = KeyDirectory(tmp_path / "keys")
    directory.create("a")
    os.mkfifo(directory.path / "b", 0o600)
    with pytest.raises(TrustError, match="is no file"):
        directory.load("b")


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701, 0o777])
def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    directory = KeyDirectory(tmp_path / "keys")
    directory.create("a")
    directory.path.chmod(mode)
    before = snapshot(tmp_path)
    for attempt in (directory.load, directory.create, directory.secret):
        with pytest.raises(TrustError, match="other users") as caught:
            attempt("a")
        assert caught.value.code == "key-exposed"
        assert "chmod" in caught.value.hint
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    directory = KeyDirectory(tmp_path / "keys")
    directory.create("a")
    (directory.path / "a").chmod(mode)
    with pytest.raises(TrustError, match="other users"):
        directory.load("a")


def test_a_missing_key_says_that_keys_do_not_travel(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="no key at") as caught:
        KeyDirectory(tmp_path / "keys").load("a")
    assert caught.value.code == "key-missing"
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(64)])
def test_a_key_file_of_another_length_is_refused(tmp_path: Path, content: bytes) -> None:
    directory = KeyDirectory(tmp_path / "keys")
    directory.create("a")
    (directory.path / "a").write_bytes(content)
    with pytest.raises(TrustError, match="where a key has 32"):
        directory.load("a")


def test_a_directory_in_a_keys_place_is_an_operation_error(tmp_path: Path) -> None:
    directory = KeyDirectory(tmp_path / "keys")
    directory.create("a")
    (directory.path / "b").mkdir(mode=0o700)
    with pytest.raises(OperationError, match="cannot read"):
        directory.load("b")


# -- identities ------------------------------------------------------------------------------------

SECRET = bytes(range(32))


def test_an_identity_is_stable() -> None:
    one, again = Identity.derive(SECRET, "fed"), Identity.derive(SECRET, "fed")
    assert one.pseudonym == again.pseudonym
    assert one.key.public == again.key.public
    assert len(one.pseudonym) == 32


def test_federations_see_nothing_in_common_of_the_same_client() -> None:
    identities = [Identity.derive(SECRET, f"fed-{i}") for i in range(50)]
    identities += [Identity.derive(bytes(32), "fed-0")]
    pseudonyms = {identity.pseudonym for identity in identities}
    keys = {identity.key.public.raw for identity in identities}
    assert len(pseudonyms) == len(keys) == 51
    for identity in identities:
        assert identity.pseudonym not in identity.key.public.fingerprint
        assert bytes.fromhex(identity.pseudonym) not in identity.key.public.raw


def test_identities_are_hkdf_of_rfc_5869() -> None:
    # RFC 5869, section 2, in HMAC alone: extract with a salt of zeros, then one block of expand.
    key = hmac.digest(bytes(32), SECRET, "sha256")
    expected = hmac.digest(key, b"privet/pseudonym/fed" + b"\x01", "sha256")[:16]
    assert Identity.derive(SECRET, "fed").pseudonym == expected.hex()


# -- commitments ---------------------------------------------------------------------------------


def test_a_commitment_is_an_hmac_under_a_salt_of_one_federation() -> None:
    """By hand: RFC 5869 with one block, then RFC 2104."""
    extracted = hmac.digest(bytes(32), SECRET, "sha256")
    salt = hmac.digest(extracted, b"privet/commitment-salt/fed\x01", "sha256")
    message = b'privet/commitment/v1\n["data"]\nrecords'
    expected = hmac.digest(salt, message, "sha256").hex()
    assert Identity.derive(SECRET, "fed").commit("data", b"records") == expected


def test_commitments_differ_by_federation_client_purpose_and_content() -> None:
    identities = [Identity.derive(SECRET, f"fed-{number}") for number in range(5)]
    identities.append(Identity.derive(bytes(32), "fed-0"))
    values = [
        who.commit(purpose, what)
        for who in identities
        for purpose in ("data", "policy")
        for what in (b"", b"a", b"b")
    ]
    assert len(set(values)) == len(values)


def test_a_salt_is_never_shown_and_never_absent() -> None:
    who = Identity.derive(SECRET, "fed")
    assert who.salt.hex() not in repr(who)
    assert repr(who.salt) not in repr(who)
    with pytest.raises(TrustError):
        Identity(who.pseudonym, who.key).commit("data", b"")
