"""Who said so: DSSE envelopes around typed payloads, and in-toto Statements inside them.

The rule: nothing is parsed before it is verified. An envelope (DSSE 1.0, the secure-systems-lab
protocol) signs the *bytes* of its payload together with their type, so a signature over one kind of
document can never be shown as another's. Signature key ids are hints; only the keys that the caller
brings count, and each counts once.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from common.canonical import CanonicalError, Json, decode_lenient, encode
from common.errors import TrustError
from common.keys import PublicKey, SigningKey, b64

# Payload types (DSSE) and predicate types (in-toto). URIs that are nobody else's.
PLAN_TYPE = "application/vnd.privet.plan+json"
POLICY_TYPE = "application/vnd.privet.policy+json"
REQUEST_TYPE = "application/vnd.privet.round-request+json"
RECEIPT_TYPE = "application/vnd.privet.receipt+json"
HELLO_TYPE = "application/vnd.privet.hello+json"
ROLL_CALL_TYPE = "application/vnd.privet.roll-call+json"
CLOSING_TYPE = "application/vnd.privet.closing+json"
CLOSED_TYPE = "application/vnd.privet.closed+json"
LEDGER_CALL_TYPE = "application/vnd.privet.ledger-call+json"
ABOUT_TYPE = "application/vnd.privet.about+json"
JOIN_TYPE = "application/vnd.privet.join+json"
ENROLMENT_TYPE = "application/vnd.privet.enrolment+json"
INTOTO_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PRIVACY_PREDICATE = "urn:privet:attestation:privacy:v1"
AUDIT_PREDICATE = "urn:privet:attestation:audit:v1"

MAX_SIGNATURES = 16


def pae(payload_type: str, payload: bytes) -> bytes:
    """The DSSE pre-authentication encoding: what is signed.

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Envelope:
    """A payload, its type and its signatures; unverified until :meth:`verify` returns."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]  # (key fingerprint, 64 bytes)

    @classmethod
    def sign(cls, payload_type: str, payload: bytes, keys: Sequence[SigningKey]) -> Envelope:
        message = pae(payload_type, payload)
        return cls(
            payload_type,
            payload,
            tuple((key.public.fingerprint, key.sign(message)) for key in keys),
        )

    def with_signature(self, key: SigningKey) -> Envelope:
        """The same envelope, co-signed: how an approver joins the coordinator."""
        signature = key.sign(pae(self.payload_type, self.payload))
        return Envelope(
            self.payload_type,
            self.payload,
            (*self.signatures, (key.public.fingerprint, signature)),
        )

    def verify(self, payload_type: str, keys: Iterable[PublicKey], threshold: int = 1) -> bytes:
        """The payload, once ``threshold`` different keys of ``keys`` have signed it as this type.

        Raises:
            TrustError: another type, too few valid signatures, or no threshold asked for.
        """
        if threshold < 1:
            raise TrustError("a threshold of no signatures trusts anybody")
        valid = self.signers(payload_type, keys)
        if len(valid) < threshold:
            raise TrustError(
                f"{len(valid)} of {threshold} required signatures are valid",
                hint="obtain it again from its source; if it is still refused, do not use it",
                code="bad-signature",
            )
        return self.payload

    def signers(self, payload_type: str, keys: Iterable[PublicKey]) -> frozenset[str]:
        """Fingerprints of those of ``keys`` that have signed it as this type.

        Raises:
            TrustError: it is of another type.
        """
        if self.payload_type != payload_type:
            raise TrustError(f"signed as {self.payload_type!r}, expected {payload_type!r}")
        known = {key.fingerprint: key for key in keys}
        message = pae(payload_type, self.payload)
        return frozenset(
            name
            for name, signature in self.signatures
            if name in known and known[name].verify(signature, message)
        )

    def json(self) -> Json:
        return {
            "payloadType": self.payload_type,
            "payload": base64.b64encode(self.payload).decode(),
            "signatures": [
                {"keyid": name, "sig": base64.b64encode(signature).decode()}
                for name, signature in self.signatures
            ],
        }

    def encode(self) -> bytes:
        return encode(self.json())

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """Read an envelope from hostile bytes; the payload stays opaque until verified."""
        try:
            document = decode_lenient(data)
        except CanonicalError as error:
            raise TrustError(f"not a DSSE envelope: {error}") from error
        signatures = document.get("signatures")
        kind = document.get("payloadType")
        if set(document) != {"payload", "payloadType", "signatures"} or not isinstance(kind, str):
            raise TrustError("not a DSSE envelope: wrong fields")
        if not isinstance(signatures, list) or not 0 < len(signatures) <= MAX_SIGNATURES:
            raise TrustError(f"an envelope carries 1 to {MAX_SIGNATURES} signatures")
        pairs = []
        for item in signatures:
            if not isinstance(item, dict) or not isinstance(item.get("keyid"), str):
                raise TrustError("not a DSSE envelope: malformed signature")
            pairs.append((item["keyid"], b64(item.get("sig"))))
        return cls(kind, b64(document["payload"]), tuple(pairs))


def statement(subjects: dict[str, str], predicate_type: str, predicate: Json) -> bytes:
    """An in-toto Statement v1 that says something about files, by SHA-256: canonical bytes.

    Args:
        subjects: file name to SHA-256 (hex) of what the statement is about.
        predicate_type: URI of what kind of thing it says.
        predicate: canonical JSON values; numbers as strings.
    """
    return encode(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": name, "digest": {"sha256": value}}
                for name, value in sorted(subjects.items())
            ],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def read_statement(
    payload: bytes, predicate_type: str, what: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Subjects (name to SHA-256) and predicate of a *verified* payload; ``what`` names its kind.

    Raises:
        TrustError: it is malformed, or a statement of another kind.
    """
    try:
        document = decode_lenient(payload)
        if document["_type"] != STATEMENT_TYPE or document["predicateType"] != predicate_type:
            raise TrustError(f"signed, but not a Privet {what}")
        named = [(item["name"], item["digest"]["sha256"]) for item in document["subject"]]
        predicate = document["predicate"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrustError(f"malformed {what}: {error}") from error
    subjects = dict(named) if all(isinstance(text, str) for pair in named for text in pair) else {}
    if not subjects or len(subjects) != len(named):
        raise TrustError(f"malformed {what}: its subjects are not one digest for a name")
    if not isinstance(predicate, dict):
        raise TrustError(f"malformed {what}: the predicate is not an object")
    return subjects, predicate


def privacy_statement(subjects: dict[str, str], predicate: Json) -> bytes:
    """:func:`statement` with a privacy predicate: what a release cost, as its signers claim."""
    return statement(subjects, PRIVACY_PREDICATE, predicate)


def read_privacy_statement(payload: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """Subjects (name to SHA-256) and predicate of a *verified* privacy statement."""
    return read_statement(payload, PRIVACY_PREDICATE, "privacy statement")
