"""The federation's own authority: what it signs, for how long, and who can read its key."""

from __future__ import annotations

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.enrolment import certificate_fingerprint
from common.errors import InputError, OperationError, TrustError
from common.keys import KeyDirectory
from server.federation.authority import AUTHORITY, TLS, Authority
from tests.world import Snapshot

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NAMES = ("server.example", "192.0.2.7", "2001:db8::7")


@pytest.fixture
def keys(tmp_path: Path) -> KeyDirectory:
    return KeyDirectory(tmp_path / "keys")


@pytest.fixture
def authority(keys: KeyDirectory) -> Authority:
    authority = Authority.create(keys, "test", NOW)
    authority.issue(NAMES, NOW)
    return authority


def openssl(*arguments: str) -> str:
    result = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True)
    return result.stdout


def test_openssl_agrees_on_the_chain_the_purpose_and_the_names(
    keys: KeyDirectory, authority: Authority, tmp_path: Path
) -> None:
    root, leaf = tmp_path / "root.pem", tmp_path / "leaf.pem"
    root.write_text(authority.certificate)
    leaf.write_bytes(keys.read(TLS))
    moment = ["-attime", str(int(NOW.timestamp()))]
    for asked in (
        ["-verify_hostname", NAMES[0]],
        ["-verify_ip", NAMES[1]],
        ["-verify_ip", NAMES[2]],
    ):
        openssl(
            "verify", "-x509_strict", "-purpose", "sslserver", *moment, *asked,
            "-CAfile", str(root), str(leaf),
        )  # fmt: skip
    with pytest.raises(subprocess.CalledProcessError):
        openssl(
            "verify", *moment, "-verify_hostname", "other.example", "-CAfile", str(root), str(leaf)
        )
    printed = openssl("x509", "-in", str(root), "-noout", "-fingerprint", "-sha256")
    assert printed.split("=")[1].strip().replace(":", "").lower() == authority.fingerprint
    assert certificate_fingerprint(authority.certificate) == authority.fingerprint


def test_a_certificate_is_short_lived_and_the_authority_signs_nothing_below_it(
    authority: Authority,
) -> None:
    current = authority.server_certificate()
    assert current.ends - NOW == timedelta(days=30)
    assert NOW - current.begins == timedelta(hours=1)  # for clocks that are behind
    assert current.names == NAMES
    assert authority.ends - NOW == timedelta(days=3652)


def test_a_certificate_is_renewed_at_half_its_life_or_when_its_names_change(
    keys: KeyDirectory, authority: Authority
) -> None:
    before = keys.read(TLS)
    assert authority.renew(NAMES, NOW + timedelta(days=14)) is False
    assert keys.read(TLS) == before
    assert authority.renew(NAMES, NOW + timedelta(days=16)) is True
    assert authority.renew((*NAMES, "more.example"), NOW + timedelta(days=16)) is True
    after = keys.read(TLS)
    assert before.split(b"-----BEGIN CERT")[0] != after.split(b"-----BEGIN CERT")[0]  # a new key
    # A clock that was set back would show clients a certificate that is not valid yet.
    assert authority.renew((*NAMES, "more.example"), NOW - timedelta(days=3)) is True


def test_the_keys_are_their_owners_alone_and_an_open_one_is_not_used(
    keys: KeyDirectory, authority: Authority
) -> None:
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o700
    for name in (AUTHORITY, TLS):
        assert stat.S_IMODE((keys.path / name).stat().st_mode) == 0o600
    (keys.path / AUTHORITY).chmod(0o640)
    with pytest.raises(TrustError) as caught:
        Authority(keys)
    assert caught.value.code == "key-exposed"


def test_an_authority_is_made_once(keys: KeyDirectory, authority: Authority) -> None:
    before = Snapshot.of(keys.path)
    with pytest.raises(OperationError) as caught:
        Authority.create(keys, "again")
    assert caught.value.code == "key-exists"
    assert Snapshot.of(keys.path) == before


def test_a_certificate_of_another_authority_is_refused(
    keys: KeyDirectory, authority: Authority, tmp_path: Path
) -> None:
    other = KeyDirectory(tmp_path / "other")
    Authority.create(other, "other", NOW).issue(NAMES, NOW)
    keys.store(TLS, other.read(TLS), again=True)
    with pytest.raises(TrustError) as caught:
        authority.server_certificate()
    assert caught.value.code == "bad-certificate"
    keys.store(AUTHORITY, keys.read(AUTHORITY)[:200], again=True)
    with pytest.raises(TrustError) as caught:
        Authority(keys)
    assert caught.value.code == "bad-certificate"


@pytest.mark.parametrize("name", ["", "a b", "Server.Example", "1.2.3", "192.0.2.07", "*.example"])
def test_what_is_no_host_gets_no_certificate(
    keys: KeyDirectory, authority: Authority, name: str
) -> None:
    before = keys.read(TLS)
    with pytest.raises(InputError):
        authority.issue([name])
    assert keys.read(TLS) == before
