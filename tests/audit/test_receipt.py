"""A receipt is a kilobyte that two parties signed, and no byte of it can be another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from audit.receipt import MAX_BYTES, Receipt, read
from audit.wording import up
from common.bundle import Trust
from common.canonical import decode, encode
from common.errors import InputError, TrustError
from common.keys import SigningKey
from common.ledger import Kind

from .bundle_fixtures import DELTA, ORDER, ROUNDS, STEPS, World, filter_epsilon, trust_in

ROOT = Path(__file__).resolve().parents[2]
WORLD = World()
FIRST = WORLD.identity(0).pseudonym
BUNDLE = WORLD.bundle()
TRUST = trust_in(BUNDLE)


@pytest.fixture
def good() -> bytes:
    return Receipt.of(BUNDLE, FIRST).encode()


def refusal(data: bytes, trust: Trust | None = TRUST) -> TrustError:
    with pytest.raises(TrustError) as caught:
        Receipt.decode(data).check(trust)
    return caught.value


def test_a_receipt_says_what_the_whole_chain_has_cost(good: bytes) -> None:
    receipt = Receipt.decode(good)
    receipt.check(TRUST)
    assert (receipt.order, receipt.entry.kind) == (ORDER, Kind.COUNTERSIGNATURE)
    assert receipt.epsilon(DELTA) == pytest.approx(filter_epsilon(ROUNDS * STEPS), rel=1e-12)
    assert receipt.json(DELTA)["entries"] == 6


@pytest.mark.parametrize("rounds", [1, 2, 15, 127, 510])
def test_a_receipt_is_at_most_a_kilobyte(rounds: int) -> None:
    plan = replace(WORLD.plan, rounds=rounds)
    bodies = World(plan=plan).history(rounds)
    # The chain alone: as many entries as that many rounds leave behind.
    world = World(plan=plan)
    chain = world.chain(0, bodies)
    bundle = replace(
        BUNDLE,
        ledgers={FIRST: chain},
        heads={FIRST: world.note(0, chain)},
    )
    receipt = Receipt.of(bundle, FIRST)
    assert len(chain) == 2 * rounds + 2
    assert len(receipt.encode()) <= 1024
    Receipt.decode(receipt.encode()).check(trust_in(BUNDLE))


def test_no_altered_byte_of_a_receipt_is_accepted(good: bytes) -> None:
    text = zlib.decompress(good)
    for position in range(len(text)):
        data = bytearray(text)
        data[position] ^= 1
        assert refusal(zlib.compress(bytes(data)))
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1
        assert refusal(bytes(data))


def test_what_is_no_receipt_is_refused(good: bytes) -> None:
    bomb = zlib.compress(b"0" * 4_000_000)
    assert len(bomb) <= MAX_BYTES
    for data in (b"", b"{}", bomb, good[:-1], good + b"x", good * 9, zlib.compress(b"{}")):
        assert "receipt" in str(refusal(data))
    document = decode(zlib.decompress(good))
    for changes in (
        {"schema_version": 2},
        {"schema_version": True},
        {"proof": []},
        {"proof": ["x"]},
        {"proof": None},
        {"proof": ["A" * 43 + "="] * 65},
        {"keys": {}},
        {"keys": None},
        {"signatures": {**document["signatures"], "third": "AA=="}},
        {"entry": None},
        {"entry": {**document["entry"], "seq": 2**40}},
        {"more": 1},
    ):
        assert refusal(zlib.compress(encode({**document, **changes})))


def test_a_spend_that_the_client_signed_anew_is_not_what_the_coordinator_saw() -> None:
    """The owner's key signs a cheaper entry; the proof then leads to a root that nobody signed."""
    receipt = Receipt.of(BUNDLE, FIRST)
    chain = WORLD.chain(0, WORLD.history(1))
    cheaper = replace(receipt, entry=replace(chain[-1], seq=receipt.entry.seq))
    assert "not signed" in str(refusal(cheaper.encode()))


def test_keys_that_nobody_vouches_for_are_named() -> None:
    forged = World(SigningKey.from_seed(b"1" * 32), SigningKey.from_seed(b"2" * 32))
    data = Receipt.of(forged.bundle(), forged.identity(0).pseudonym).encode()
    Receipt.decode(data).check(None)
    assert refusal(data).code == "untrusted-key"


def test_a_client_without_a_countersigned_head_has_no_receipt() -> None:
    for name in ("0" * 32, "", "../x"):
        with pytest.raises(InputError, match="no countersigned head"):
            Receipt.of(BUNDLE, name)


def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read(path)


def test_the_command_checks_a_receipt_with_the_standard_library(tmp_path: Path, good) -> None:
    (tmp_path / "receipt").write_bytes(good)
    TRUST.write(tmp_path / "trust.json")

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "audit", "check-receipt", str(tmp_path / "receipt"), *more],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = command("--trust", str(tmp_path / "trust.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("verified\n")
    assert f"epsilon_filter {up(filter_epsilon(ROUNDS * STEPS), 4)} at delta 1e-05" in done.stdout
    done = command("--json")
    assert done.returncode == 12
    assert json.loads(done.stdout)["verdict"] == "self-consistent, unauthenticated"
    assert command("--delta", "2").returncode == 4
    (tmp_path / "receipt").write_bytes(good[:-1])
    done = command()
    assert (done.returncode, done.stdout) == (11, "")
    assert done.stderr.startswith("WRONG: not a receipt")
