"""One ledger entry, and the chain that a federation's entries form. Pure.

The rules: an entry is never edited. Each is signed by the client's key for that federation and
names the SHA-256 of the entry before it, so a change, a gap, a swap or a duplicate breaks the chain
at a place that can be named. An entry holds public parameters and digests only: no loss, no count,
no batch size, nothing that depends on a record. Numbers are strings that come back to the same
bits.

What a chain cannot show by itself is that its end was cut off, or that its owner wrote all of it
anew: that needs a head that somebody else keeps. The coordinator countersigns what it has seen
(:mod:`common.ledger.head`), and the next entry stores that, so that each side holds the other.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property

from common.canonical import CanonicalError, Json, digest, encode, number, parse_number
from common.errors import TrustError
from common.keys import Identity, PublicKey, b64
from common.ledger.merkle import leaf_hash
from common.privacy import accountant
from common.privacy.events import Event

SCHEMA_VERSION = 2
GENESIS = "0" * 64
_CONTEXT = b"privet/ledger-entry/v2\n"
_FIELDS = {"schema_version", "federation", "client", "seq", "prev", "time", "kind", "body"}
_HEX64 = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_HEX128 = re.compile(r"[0-9a-f]{128}")


class Kind(StrEnum):
    """What an entry records, and the fields of its body."""

    APPROVAL = "approval"  # the owner agreed to a plan: its terms, the code, the columns
    ENROLMENT = "enrolment"  # central trust: the whole plan, spent by one run, drawn or not
    INTENT = "intent"  # about to draw noise: spent from here on, whatever happens
    DISCLOSURE = "disclosure"  # these bytes left, under that intent
    COUNTERSIGNATURE = "countersignature"  # the run is over; the coordinator vouches for its end
    POLICY = "policy"  # this version of the owner's policy was seen; the owner's alone, unpublished
    RECOVERY = "recovery"  # a torn last line was found and set aside


BODY_FIELDS: dict[Kind, frozenset[str]] = {
    # An intent's ``event`` is null where an enrolment has paid for the round.
    # ``policy`` and ``data`` are salted commitments: they can be opened, and say nothing closed.
    Kind.APPROVAL: frozenset({"plan", "terms", "code", "model", "features", "policy", "data"}),
    Kind.ENROLMENT: frozenset({"plan", "event", "spent"}),
    Kind.POLICY: frozenset({"version", "digest"}),
    Kind.INTENT: frozenset(
        {"plan", "run", "incarnation", "round", "request", "model", "event", "clipping_norm"}
        | {"divisor", "noise", "spent", "countersigned"}
    ),
    Kind.DISCLOSURE: frozenset({"intent", "update", "spent"}),
    Kind.COUNTERSIGNATURE: frozenset({"countersigned", "spent"}),
    Kind.RECOVERY: frozenset({"torn"}),
}


@dataclass(frozen=True)
class Entry:
    """A signed line of one client's history with one federation.

    Args:
        federation: fingerprint of the coordinator's key.
        client: the client's pseudonym in that federation.
        seq: 0, 1, 2 … within the federation.
        prev: digest of the entry before it, or :data:`GENESIS`.
        time: UTC, ISO 8601 with a ``Z``; never before the entry before it. Only an owner's period
            is held against it, by the owner's own clock.
        kind: see :class:`Kind`.
        body: canonical JSON with exactly the fields of ``BODY_FIELDS[kind]``.
        signature: Ed25519, 64 bytes, by the client's key for this federation.
    """

    federation: str
    client: str
    seq: int
    prev: str
    time: str
    kind: Kind
    body: Json
    signature: bytes

    @classmethod
    def sign(
        cls, who: Identity, federation: str, last: Entry | None, kind: Kind, body: Json, time: str
    ) -> Entry:
        """The entry that follows ``last`` in this federation's chain."""
        unsigned = cls(
            federation=federation,
            client=who.pseudonym,
            seq=last.seq + 1 if last else 0,
            prev=last.digest if last else GENESIS,
            time=time,
            kind=kind,
            body=body,
            signature=b"",
        )
        _check_body(kind, body)
        signature = who.key.sign(_CONTEXT + encode(unsigned._signed_fields()))
        return replace(unsigned, signature=signature)

    @cached_property
    def line(self) -> bytes:
        """The entry's canonical bytes."""
        return encode(self.json())

    @cached_property
    def digest(self) -> str:
        """What the next entry names."""
        return digest(self.line)

    @cached_property
    def leaf(self) -> bytes:
        """Its hash in the Merkle tree over the chain."""
        return leaf_hash(self.line)

    def signed_by(self, key: PublicKey) -> bool:
        return key.verify(self.signature, _CONTEXT + encode(self._signed_fields()))

    def event(self) -> Event:
        """What an intent or an enrolment spends; :class:`CanonicalError` where nothing is spent."""
        return Event.from_json(self.body.get("event"))

    def json(self) -> Json:
        return {**self._signed_fields(), "signature": base64.b64encode(self.signature).decode()}

    @classmethod
    def from_json(cls, value: object) -> Entry:
        """Read an entry from hostile JSON; :class:`TrustError` says which field is wrong."""
        if not isinstance(value, dict) or set(value) != _FIELDS | {"signature"}:
            raise TrustError("a ledger entry has other fields than it should")
        version = value["schema_version"]
        if type(version) is not int or version != SCHEMA_VERSION:
            raise TrustError(f"ledger entry of unknown version {version!r:.40}")
        if type(value["seq"]) is not int or value["seq"] < 0:
            raise TrustError("a ledger entry's seq is not a count")
        for field in ("federation", "client", "prev", "time", "kind"):
            if not isinstance(value[field], str) or len(value[field]) > 128:
                raise TrustError(f"a ledger entry's {field} is not a short text")
        if not _HEX64.fullmatch(value["prev"]) or not _HEX64.fullmatch(value["federation"]):
            raise TrustError("a ledger entry's prev or federation is not a SHA-256")
        if not _TIME.fullmatch(value["time"]):
            raise TrustError("a ledger entry's time is not in UTC, to the second")
        try:
            kind = Kind(value["kind"])
            _check_body(kind, value["body"])
        except (ValueError, CanonicalError) as error:
            raise TrustError(f"ledger entry {value['seq']}: {error}") from error
        return cls(
            federation=value["federation"],
            client=value["client"],
            seq=value["seq"],
            prev=value["prev"],
            time=value["time"],
            kind=kind,
            body=value["body"],
            signature=b64(value["signature"]),
        )

    def _signed_fields(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "federation": self.federation,
            "client": self.client,
            "seq": self.seq,
            "prev": self.prev,
            "time": self.time,
            "kind": self.kind.value,
            "body": self.body,
        }


def now() -> str:
    """The present, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def events(entries: Iterable[Entry]) -> list[Event]:
    """What these entries spent: one event for each that names one, disclosed or not."""
    return [entry.event() for entry in entries if entry.body.get("event") is not None]


def spent_json(entries: Iterable[Entry], order: int, *more: Event) -> Json:
    """What a chain has spent so far, as its next entry states it: a Rényi cost at one order.

    It counts this federation alone, so that a published chain says nothing about other work.
    """
    cost = accountant.rdp([*events(entries), *more], order)
    return {"order": order, "cost": number(cost)}


def verify_chain(entries: Sequence[Entry], key: PublicKey) -> None:
    """Check one federation's entries from the first on: order, links, signatures, references.

    Raises:
        TrustError: names the first entry that is wrong, and how.
    """
    expected_prev, intents = GENESIS, set[int]()
    for position, entry in enumerate(entries):
        if entry.seq != position:
            raise TrustError(f"entry {position}: numbered {entry.seq}; one is missing or moved")
        if (entry.federation, entry.client) != (entries[0].federation, entries[0].client):
            raise TrustError(f"entry {position}: belongs to another client or federation")
        if position and entry.time < entries[position - 1].time:
            raise TrustError(f"entry {position}: is older than the entry before it")
        if entry.prev != expected_prev:
            raise TrustError(f"entry {position}: does not follow from the entry before it")
        if not entry.signed_by(key):
            raise TrustError(f"entry {position}: signature is not by key {key.fingerprint[:16]}…")
        if entry.kind is Kind.INTENT:
            intents.add(position)
        elif entry.kind is Kind.DISCLOSURE:
            if entry.body["intent"] not in intents:
                raise TrustError(f"entry {position}: discloses without an open intent")
            intents.discard(entry.body["intent"])
        expected_prev = entry.digest


def _check_body(kind: Kind, body: object) -> None:
    if not isinstance(body, dict) or set(body) != BODY_FIELDS[kind]:
        raise CanonicalError(f"{kind.value}: other fields than {sorted(BODY_FIELDS[kind])}")
    if kind is Kind.ENROLMENT or (kind is Kind.INTENT and body["event"] is not None):
        Event.from_json(body["event"])
    for field in {"round", "incarnation", "intent", "version"} & set(body):
        _check_count(kind, field, body[field])
    if body.get("version") == 0:
        raise CanonicalError(f"{kind.value}: versions begin at 1")
    if "spent" in body:
        spent = _fields(kind, body, "spent", {"order", "cost"})
        _check_count(kind, "order", spent["order"])
        if parse_number(spent["cost"]) < 0:
            raise CanonicalError(f"{kind.value}: a cost is never negative")
    if "countersigned" in body:
        seen = _fields(kind, body, "countersigned", {"entries", "signature"})
        _check_count(kind, "entries", seen["entries"])
        if not isinstance(seen["signature"], str) or not _HEX128.fullmatch(seen["signature"]):
            raise CanonicalError(f"{kind.value}: countersigned is not an Ed25519 signature")


def _fields(kind: Kind, body: Json, name: str, expected: set[str]) -> Json:
    value = body[name]
    if not isinstance(value, dict) or set(value) != expected:
        raise CanonicalError(f"{kind.value}: {name} has other fields than {sorted(expected)}")
    return value


def _check_count(kind: Kind, name: str, value: object) -> None:
    if type(value) is not int or value < 0:
        raise CanonicalError(f"{kind.value}: {name} is not a count")
