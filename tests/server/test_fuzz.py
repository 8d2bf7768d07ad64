"""Whatever bytes arrive, they are read or refused with a code: no crash, no hang, no memory.

Genuine messages of every kind that reaches a server, a client or an auditor are damaged by a seeded
mutator and read again. Half of the kinds are damaged under a valid signature, as a malicious member
could send them. What is unsigned and still accepted must say the same as the genuine one.
"""

from __future__ import annotations

import contextlib
import random
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from audit.receipt import Receipt as LedgerReceipt
from client.guard import read_request
from common.bundle import Bundle
from common.canonical import digest, encode
from common.coding import Codec
from common.compression import Compression
from common.errors import PrivetError
from common.keys import PublicKey, SigningKey
from common.ledger import Head, SignedHead, merkle
from common.ledger.head import CLIENT, COORDINATOR
from common.plan import Plan
from common.statement import PLAN_TYPE, Envelope
from common.wire import (
    Closed,
    Closing,
    Hello,
    Receipt,
    RollCall,
    RoundRequest,
    digest_arrays,
    from_npy,
)
from server.aggregation.validate import Expected, check_reply, open_reply
from server.messages import read_closed, read_hello, read_reply
from tests import world
from tests.audit.bundle_fixtures import World as BundleWorld
from tests.world import FEDERATION, PLAN, RUN, SHAPES, FakeClient, ask, flower_identity, leaves

MEBIBYTE = 2**20
MOST_MEMORY = 64 * MEBIBYTE


@pytest.fixture(autouse=True)
def _flower() -> None:
    flower_identity()


# -- the mutator ---------------------------------------------------------------------------------

PIECES = [
    b"", b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b"{}", b"[]", b'"', b"\\ud800",
    b"\\u0000", b"9" * 400, b"9" * 5000, b"18446744073709551616", b"[" * 3000,
    b'{"a":' * 3000, b"\x00" * 64, b"\xff\xfe", "\N{EM DASH} ".encode(), b"\n", b"\n\n", b"'",
    b", ", b"(9000, 9000)", b"/../../",
    b"=" * 80, b"A" * 20_000, b"\x93NUMPY\x01\x00", b'"schema_version":3', b"privet/ledger/",
]  # fmt: skip


class Mutator:
    """Damages bytes, the same way for a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def __call__(self, data: bytes, other: bytes) -> bytes:
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 8))):
            data = self._once(data, other)
        if self.random.random() < 0.01:
            data = (data or b"x") * (MEBIBYTE // max(1, len(data)))
        return data[: 4 * MEBIBYTE]

    def _once(self, data: bytes, other: bytes) -> bytes:
        start = self.random.randrange(len(data) + 1)
        end = min(len(data), start + self.random.choice((1, 1, 2, 4, 16, 64, 1000)))
        before, middle, after = data[:start], data[start:end], data[end:]
        match self.random.randrange(8):
            case 0:
                return (
                    before + bytes(byte ^ 1 << self.random.randrange(8) for byte in middle) + after
                )
            case 1:
                return before + self.random.randbytes(len(middle)) + after
            case 2:
                return before + after
            case 3:
                return before + middle * self.random.choice((2, 3, 100)) + after
            case 4:
                return before + self.random.choice(PIECES) + middle + after
            case 5:
                return before + self.random.choice(PIECES) + after
            case 6:
                return before + other[self.random.randrange(len(other) + 1) :]
            case _:
                return before


# -- what is read --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One kind of bytes: a genuine example, who reads it, and whether another meaning may pass."""

    genuine: bytes
    read: Callable[[bytes], Any]
    may_differ: bool = False


CLINIC = FakeClient("clinic-a")
KEY = CLINIC.key.public
SERVER = world.COORDINATOR
REQUEST = ask(2, nonce=7, entries=1, root=merkle.root(leaves(1)).hex())
UPDATE, RECEIPT = FakeClient("clinic-a", leaves(1)).answer(REQUEST)
CLOSING = Closing("clinic-a", RUN, 3, "ab" * 32, "cd" * 64)
CLOSED = FakeClient("clinic-a", leaves(3)).close(CLOSING)
NPY = bytes(Array(UPDATE["weight"]).data)
LIMIT = sum(value.nbytes + 1024 for value in UPDATE.values())
EXPECTED = Expected(
    client="clinic-a",
    key=KEY,
    seen=Head(FEDERATION, CLINIC.pseudonym, 1, merkle.root(leaves(1)).hex()),
    request=REQUEST,
    shapes=SHAPES,
    bound=1000.0,
)


def answer(content: dict[str, Any]) -> Message:
    asked = Message(RecordDict(), dst_node_id=100, message_type="train")
    return Message(RecordDict(content), reply_to=asked)


def reply(weight: bytes, receipt: bytes) -> str:
    """A reply in a Flower message, all the way to its acceptance."""
    arrays = {
        "weight": Array(dtype="float32", shape=(2, 2), stype="numpy.ndarray", data=weight),
        "bias": Array(UPDATE["bias"]),
    }
    record = {"update": ArrayRecord(arrays), "receipt": ConfigRecord({"envelope": receipt})}
    read = read_reply(answer(record), LIMIT)
    check_reply(EXPECTED, read.update, read.receipt)
    return digest_arrays(read.update)


CODECS = {
    compression.method: Codec(compression, SHAPES, EXPECTED.bound)
    for compression in (Compression("fp16"), Compression("int8"), Compression("top-k", 0.34))
}


def coded(codec: Codec) -> Target:
    """A coded update under a genuine receipt for it, as a malicious member could send it."""

    def read(data: bytes) -> str:
        receipt = FakeClient("clinic-a", leaves(3)).receipt(REQUEST, data)
        record = {
            "update": ConfigRecord({"coded": data}),
            "receipt": ConfigRecord({"envelope": receipt}),
        }
        found = read_reply(answer(record), codec.size, coded=True)
        _, update = open_reply(replace(EXPECTED, codec=codec), found.update, found.receipt)
        return digest_arrays(update)

    return Target(codec.encode(UPDATE, {})[0], read, may_differ=True)


def enveloped(name: str, read: Callable[[Message], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: read(answer({name: ConfigRecord({"envelope": data})}))


def hello(data: bytes) -> Hello:
    return Hello.verify(enveloped("hello", read_hello)(data), KEY)


def closed(data: bytes) -> Closed:
    return Closed.verify(enveloped("closed", read_closed)(data), KEY)


def signed(kind: str, key: SigningKey, read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Reads a payload that its sender signed, whatever it is."""
    return lambda payload: read(Envelope.sign(kind, payload, [key]).encode())


def note() -> bytes:
    head = Head("ab" * 32, "cd" * 16, 7, "ef" * 32)
    both = SignedHead.of(head).with_signature(CLIENT, KEY, head.sign(CLINIC.key))
    return both.with_signature(COORDINATOR, SERVER.public, head.sign(SERVER)).encode()


def plan_of(data: bytes, key: PublicKey = SERVER.public) -> Plan:
    return Plan.decode(Envelope.decode(data).verify(PLAN_TYPE, [key]))


def payload(envelope: bytes) -> bytes:
    return Envelope.decode(envelope).payload


def targets(path: Path) -> dict[str, Target]:
    request, call = REQUEST.sign(SERVER), RollCall(RUN, "12" * 16).sign(SERVER)
    closing, said = CLOSING.sign(SERVER), Hello("clinic-a", "12" * 16).sign(CLINIC.key)
    plan = world.signed(PLAN)

    def of_server(kind: type[Any]) -> Callable[[bytes], Any]:
        return lambda data: kind.verify(data, SERVER.public)

    def asked(data: bytes) -> RoundRequest:
        return read_request(data, SERVER.public)

    def receipt(data: bytes) -> Receipt:
        return Receipt.verify(data, KEY)

    def forged(
        kind: type[Any], key: SigningKey, data: bytes, read: Callable[[bytes], Any]
    ) -> Target:
        return Target(payload(data), signed(kind.TYPE, key, read), may_differ=True)

    found = {
        "receipt": Target(RECEIPT, lambda data: reply(NPY, data)),
        "array": Target(NPY, lambda data: reply(data, RECEIPT)),
        "array-alone": Target(NPY, lambda data: from_npy(data).shape, may_differ=True),
        "hello": Target(said, hello),
        "closed": Target(CLOSED, closed),
        "request": Target(request, asked),
        "roll-call": Target(call, of_server(RollCall)),
        "closing": Target(closing, of_server(Closing)),
        "plan": Target(plan, plan_of),
        "note": Target(note(), lambda data: SignedHead.decode(data), may_differ=True),
        "signed-receipt": forged(Receipt, CLINIC.key, RECEIPT, receipt),
        "signed-reply": forged(Receipt, CLINIC.key, RECEIPT, lambda data: reply(NPY, data)),
        "signed-hello": forged(Hello, CLINIC.key, said, hello),
        "signed-closed": forged(Closed, CLINIC.key, CLOSED, closed),
        "signed-request": forged(RoundRequest, SERVER, request, asked),
        "signed-closing": forged(Closing, SERVER, closing, of_server(Closing)),
        "signed-plan": Target(payload(plan), signed(PLAN_TYPE, SERVER, plan_of), may_differ=True),
    }
    found |= {f"coded-{method}": coded(codec) for method, codec in CODECS.items()}
    return found | published(path)


def published(path: Path) -> dict[str, Target]:
    """What an auditor reads: a bundle's files, with a manifest that lists them as they are."""
    bundle = BundleWorld().bundle()
    bundle.write(path)
    manifest = (path / "bundle.json").read_bytes()
    ledger = next(path.glob("ledgers/*.jsonl"))
    entries = ledger.read_bytes()

    def with_manifest(data: bytes) -> list[str]:
        (path / "bundle.json").write_bytes(data)
        try:
            return sorted(Bundle.read(path).clients)
        finally:
            (path / "bundle.json").write_bytes(manifest)

    def with_ledger(data: bytes) -> object:
        ledger.write_bytes(data)
        listed = manifest.replace(digest(entries).encode(), digest(data).encode())
        (path / "bundle.json").write_bytes(listed)
        try:
            return Bundle.read(path).ledgers
        finally:
            ledger.write_bytes(entries)
            (path / "bundle.json").write_bytes(manifest)

    small = LedgerReceipt.of(bundle, next(iter(bundle.clients))).encode()
    return {
        "bundle": Target(manifest, with_manifest, may_differ=True),
        "bundle-ledger": Target(entries, with_ledger, may_differ=True),
        "ledger-receipt": Target(small, LedgerReceipt.decode, may_differ=True),
    }


# -- the run -------------------------------------------------------------------------------------


class Hung(BaseException):
    """A message took too long; not an Exception, so that nothing on the way can swallow it."""


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    def bark(_: int, frame: FrameType | None) -> None:
        raise Hung(frame)

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


def fuzz(kinds: dict[str, Target], count: int, seed: int, patience: float) -> Counter[str]:
    """Read ``count`` damaged messages, of each kind in turn; how many ended in which way."""
    mutate, outcomes = Mutator(seed), Counter[str]()
    wanted = {
        n: target.read(target.genuine) for n, target in kinds.items() if not target.may_differ
    }
    names = list(kinds)
    for index in range(count):
        name = names[index % len(names)]
        target = kinds[name]
        data = mutate(target.genuine, kinds[mutate.random.choice(names)].genuine)
        try:
            with watchdog(patience):
                read = target.read(data)
        except PrivetError as error:
            assert error.code
            outcomes[error.code] += 1
        except BaseException as error:
            raise AssertionError(f"message {index}, {name}: {data[:2000]!r}") from error
        else:
            assert target.may_differ or same(read, wanted[name]), (name, data)
            outcomes["accepted"] += 1
    return outcomes


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    "read",
    [int, lambda data: data[2], lambda data: signal.pause() if len(data) > 3 else None],
    ids=["raises-value-error", "raises-index-error", "hangs"],
)
def test_a_reader_that_crashes_or_hangs_is_found(read: Callable[[bytes], Any]) -> None:
    with pytest.raises(AssertionError, match=r"message \d+, bad"):
        fuzz({"bad": Target(b"123", read, may_differ=True)}, 200, 1, patience=0.05)


def test_the_genuine_ones_are_read(tmp_path: Path) -> None:
    kinds = targets(tmp_path / "bundle")
    assert len(kinds) == 23
    for name, target in kinds.items():
        assert target.read(target.genuine) is not None, name


def test_the_mutator_damages_most_and_the_same_for_a_seed() -> None:
    data = encode({"a": [1, 2, 3], "b": "text"})
    one, other = Mutator(3), Mutator(3)
    made = [one(data, b"other") for _ in range(500)]
    assert made == [other(data, b"other") for _ in range(500)]
    assert sum(item != data for item in made) > 450
    assert len(set(made)) > 400
    assert max(map(len, made)) > MEBIBYTE // 2


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_messages_are_refused_with_a_code(tmp_path: Path, seed: int) -> None:
    outcomes = fuzz(targets(tmp_path / "bundle"), 600, seed, patience=60.0)
    assert outcomes.total() == 600
    assert outcomes["accepted"] < 60
    assert {"malformed", "bad-signature", "bad-receipt", "bad-plan"} <= set(outcomes)


def test_no_damaged_message_makes_its_reader_allocate_much(tmp_path: Path) -> None:
    kinds = targets(tmp_path / "bundle")
    fuzz(kinds, 40, 1, patience=60.0)  # imports and caches
    tracemalloc.start()
    try:
        fuzz(kinds, 200, 4, patience=60.0)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.figures
def test_ten_thousand_damaged_messages(tmp_path: Path) -> None:
    """0 crashes, 0 that take over a second; memory, after each hundred, at most 64 MiB more."""
    kinds = targets(tmp_path / "bundle")
    fuzz(kinds, 200, 1, patience=60.0)
    before = resident()
    outcomes, most = Counter[str](), 0
    for part in range(100):
        outcomes += fuzz(kinds, 100, 100 + part, patience=1.0)
        most = max(most, resident() - before)
    print(f"\n{outcomes.total():,} damaged messages: 0 crashes, 0 over 1 s,", end=" ")
    print(f"memory + {most / MEBIBYTE:.1f} MiB; {dict(outcomes.most_common())}")
    assert outcomes.total() == 10_000
    assert most <= MOST_MEMORY
