"""What do a client and a server say to each other when one joins? Three signed documents. Pure.

The rules: a client proves that it holds the two private keys that it asks to be bound to its name,
over one document that names the federation, the authority and a challenge, so that no proof serves
twice or elsewhere. A signature is checked before what it covers is parsed, wherever the key is
known beforehand; a key that comes inside of a document proves possession and nothing else. Every
document has one spelling and at most 16 KiB.

    about      the coordinator says who it is: address, authority's certificate, approver
    join       a client asks: name, pseudonym, ledger key, node key; signed by both keys, and by
               the invitation's where there is one
    enrolment  the coordinator answers: these are bound to that name
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from common.canonical import CanonicalError, Json, decode, encode
from common.canonical import digest as sha256
from common.config import NAME
from common.errors import InputError, TrustError
from common.invitation import Address
from common.keys import PublicKey, SigningKey, b64
from common.nodekey import NodeKey, NodePublicKey
from common.statement import ABOUT_TYPE, ENROLMENT_TYPE, JOIN_TYPE, Envelope, pae

SCHEMA_VERSION = 1
MAX_BYTES = 16 * 1024
ABOUT_PATH = "/v1/privet/about"
CHALLENGE_PATH = "/v1/privet/challenge"
JOIN_PATH = "/v1/privet/join"
PATHS = (ABOUT_PATH, CHALLENGE_PATH, JOIN_PATH)

NODE_PROOF_TYPE = "application/vnd.privet.join-node-proof+json"
_HEX32, _HEX64 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)


class _Document:
    """A frozen dataclass of texts that travels as canonical JSON; "" stands for: there is none."""

    def encode(self) -> bytes:
        return encode({"schema_version": SCHEMA_VERSION, **asdict(self)})  # type: ignore[call-overload]

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload; :class:`TrustError` ``malformed`` on anything else than was encoded."""
        document = open_document(payload)
        names = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        if document.pop("schema_version", None) != SCHEMA_VERSION or set(document) != names:
            raise _malformed("other fields than expected")
        if not all(isinstance(value, str) for value in document.values()):
            raise _malformed("a field is no text")
        return cls(**document)


@dataclass(frozen=True)
class About(_Document):
    """What a coordinator says of itself.

    Args:
        address: where the server listens.
        authority: its certificate authority's certificate, PEM.
        approver: fingerprint of the approver's key; "" if none is known yet.
    """

    address: str
    authority: str
    approver: str

    def __post_init__(self) -> None:
        _address(self.address)
        _check(self.approver, _HEX64, "approver", empty=True)

    def sign(self, key: SigningKey) -> bytes:
        envelope = Envelope.sign(ABOUT_TYPE, self.encode(), [key])
        return encode({"coordinator": key.public.text(), "about": envelope.json()})

    @classmethod
    def verify(cls, data: bytes, federation: str) -> tuple[About, PublicKey]:
        """The document and the coordinator's key, whose fingerprint is ``federation``.

        Raises:
            TrustError: ``wrong-coordinator``, ``bad-signature`` or ``malformed``.
        """
        outer = open_document(data)
        if set(outer) != {"about", "coordinator"}:
            raise _malformed("other fields than expected")
        key = PublicKey.from_text(outer["coordinator"])
        if key.fingerprint != federation:
            raise TrustError(
                f"this is the coordinator {key.fingerprint[:16]}…, expected {federation[:16]}…",
                hint="ask the operator for a new invitation, and compare fingerprints",
                code="wrong-coordinator",
            )
        return cls.decode(_envelope(outer["about"]).verify(ABOUT_TYPE, [key])), key

    @classmethod
    def unverified(cls, data: bytes) -> About:
        """What somebody says, for whoever knows the authority's fingerprint; it proves nothing.

        Raises:
            TrustError: ``malformed``.
        """
        return cls.decode(_envelope(open_document(data).get("about")).payload)


@dataclass(frozen=True)
class Join(_Document):
    """What a client asks to have bound to its name.

    Args:
        name: what it will be called.
        federation: fingerprint of the coordinator's key that it means.
        authority: fingerprint of the certificate authority that it means.
        invitation: id of the invitation; "" in a request file.
        challenge: what the server gave out for this; in a request file 64 random hex digits.
        pseudonym: 32 hexadecimal digits.
        ledger_key: Ed25519, base64.
        node_key: PEM, as Flower registers it.
    """

    name: str
    federation: str
    authority: str
    invitation: str
    challenge: str
    pseudonym: str
    ledger_key: str
    node_key: str

    def __post_init__(self) -> None:
        _check(self.name, NAME, "name")
        _check(self.federation, _HEX64, "federation")
        _check(self.authority, _HEX64, "authority")
        _check(self.invitation, _HEX32, "invitation", empty=True)
        _check(self.challenge, re.compile(r"[0-9a-f]{64,160}"), "challenge")
        _check(self.pseudonym, _HEX32, "pseudonym")
        PublicKey.from_text(self.ledger_key)
        NodePublicKey(self.node_key)

    @property
    def digest(self) -> str:
        return sha256(self.encode())

    @property
    def ledger(self) -> PublicKey:
        return PublicKey.from_text(self.ledger_key)

    @property
    def node(self) -> NodePublicKey:
        return NodePublicKey(self.node_key)

    def sign(self, ledger: SigningKey, node: NodeKey, invitation: SigningKey | None) -> bytes:
        """The request with its proofs: both keys', and the invitation's if there is one."""
        payload = self.encode()
        envelope = Envelope.sign(
            JOIN_TYPE, payload, [ledger, *([invitation] if invitation else [])]
        )
        proof = node.sign(pae(NODE_PROOF_TYPE, payload))
        return encode(
            {
                "invitation": self.invitation,
                "node_proof": base64.b64encode(proof).decode(),
                "request": envelope.json(),
            }
        )


@dataclass(frozen=True)
class SignedJoin:
    """A request as it came: only the invitation's id was read, nothing was verified."""

    invitation: str
    envelope: Envelope
    node_proof: bytes

    @classmethod
    def decode(cls, data: bytes) -> SignedJoin:
        """Read hostile bytes; :class:`TrustError` ``malformed``."""
        outer = open_document(data)
        if set(outer) != {"invitation", "node_proof", "request"}:
            raise _malformed("other fields than expected")
        _check(outer["invitation"], _HEX32, "invitation", empty=True)
        proof = b64(outer["node_proof"])
        return cls(outer["invitation"], _envelope(outer["request"]), proof)

    def verify(self, invitation: PublicKey | None) -> Join:
        """The request, once every key that has to sign it did.

        Args:
            invitation: the key of the invitation that it names; None: it came as a file.

        Raises:
            TrustError: ``bad-signature``, ``bad-node-key`` or ``malformed``.
        """
        if invitation is not None:
            self.envelope.verify(JOIN_TYPE, [invitation])
        join = Join.decode(self.envelope.payload)
        self.envelope.verify(JOIN_TYPE, [join.ledger])
        if not join.node.verify(self.node_proof, pae(NODE_PROOF_TYPE, self.envelope.payload)):
            raise TrustError("the node key did not sign the request", code="bad-signature")
        if join.invitation != self.invitation or bool(self.invitation) != (invitation is not None):
            raise TrustError("signed for another invitation", code="bad-signature")
        return join


@dataclass(frozen=True)
class Enrolment(_Document):
    """What the coordinator bound to a name, and what a client needs to find it again.

    Args:
        name, pseudonym, ledger_key, node_key: as asked.
        federation: fingerprint of the coordinator's key, which signs this.
        address, authority, approver: as in :class:`About`.
        invitation: id of the invitation that was used; "" if none was.
        enrolled: when, UTC.
    """

    name: str
    pseudonym: str
    ledger_key: str
    node_key: str
    federation: str
    address: str
    authority: str
    approver: str
    invitation: str
    enrolled: str

    def __post_init__(self) -> None:
        _check(self.name, NAME, "name")
        _check(self.pseudonym, _HEX32, "pseudonym")
        _check(self.federation, _HEX64, "federation")
        _check(self.approver, _HEX64, "approver", empty=True)
        _check(self.invitation, _HEX32, "invitation", empty=True)
        _check(self.enrolled, _TIME, "enrolled")
        _address(self.address)
        PublicKey.from_text(self.ledger_key)
        NodePublicKey(self.node_key)

    def sign(self, key: SigningKey) -> bytes:
        return Envelope.sign(ENROLMENT_TYPE, self.encode(), [key]).encode()

    @classmethod
    def verify(cls, data: bytes, coordinator: PublicKey) -> Enrolment:
        """Read what this coordinator signed.

        Raises:
            TrustError: ``bad-signature`` or ``malformed``.
        """
        enrolment = cls.decode(_envelope(open_document(data)).verify(ENROLMENT_TYPE, [coordinator]))
        if enrolment.federation != coordinator.fingerprint:
            raise _malformed("of another federation")
        return enrolment

    def answers(self, join: Join) -> bool:
        """Whether this binds exactly what was asked."""
        names = ("name", "pseudonym", "ledger_key", "node_key", "federation", "invitation")
        return all(getattr(self, name) == getattr(join, name) for name in names)


def certificate_fingerprint(pem: str) -> str:
    """SHA-256 of a certificate's DER, 64 hexadecimal digits, from its PEM.

    Raises:
        TrustError: ``wrong-authority``: not exactly one certificate, in the usual spelling.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        usual = certificate.public_bytes(serialization.Encoding.PEM).decode()
    except ValueError as error:
        raise TrustError("the authority's certificate is none", code="wrong-authority") from error
    if usual != pem:
        raise TrustError("more than the authority's certificate", code="wrong-authority")
    return sha256(certificate.public_bytes(serialization.Encoding.DER))


def open_document(data: bytes) -> Json:
    """Hostile bytes to a JSON object: size first, then strict canonical form."""
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes")
    try:
        return decode(data)
    except CanonicalError as error:
        raise _malformed(str(error)) from error


def _envelope(value: Any) -> Envelope:
    if not isinstance(value, Mapping):
        raise _malformed("no envelope")
    return Envelope.decode(encode(dict(value)))


def _check(value: Any, pattern: re.Pattern[str], what: str, *, empty: bool = False) -> None:
    if empty and value == "":
        return
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _malformed(f"{what} is not what it should be")


def _address(text: str) -> None:
    try:
        Address.parse(text)
    except InputError as error:
        raise _malformed(str(error)) from error


def _malformed(why: str) -> TrustError:
    return TrustError(f"not an enrolment document: {why}", code="malformed")
