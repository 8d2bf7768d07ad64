"""Who may join? Whoever holds an invitation, and proves the keys that it brings. No network here.

The rules: nothing is believed that was not signed over this federation, this authority, this
invitation and a challenge that this process gave out minutes ago. Everything is checked before the
one durable write that enrols. The same client may ask again with the same keys and hears the same
answer, so an answer that was lost costs nothing; anybody else with the same token is refused.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable

from common.canonical import Json, encode
from common.enrolment import About, Enrolment, Join, SignedJoin, open_document
from common.errors import TrustError
from common.keys import SigningKey
from server.federation.directory import Federation
from server.federation.invitations import Invitations
from server.federation.registry import Enrolled

CHALLENGE_SECONDS = 300


class Doorkeeper:
    """Answers those who want to join a federation.

    Args:
        federation: who is enrolled, and the coordinator's keys.
        clock: seconds since 1970.
    """

    def __init__(self, federation: Federation, clock: Callable[[], float] = time.time) -> None:
        self._federation = federation
        self._clock = clock
        self._invitations = Invitations(federation)
        self._key: SigningKey = federation.signing_key()
        self._certificate = federation.authority().certificate
        self._authority = federation.authority().fingerprint
        self._secret = os.urandom(32)  # of this process: challenges of an earlier one are void

    def about(self) -> bytes:
        """Who the coordinator says it is; anybody may know."""
        return self._said().sign(self._key)

    def _said(self) -> About:
        """Address and approver are the operator's to change while this process runs."""
        now = Federation.read(self._federation.path)
        return About(str(now.address), self._certificate, now.approver)

    def challenge(self, body: bytes) -> bytes:
        """Something fresh to sign, for whoever names an invitation that is open.

        Raises:
            TrustError: ``malformed``, ``unknown-invitation`` or ``invitation-expired``.
        """
        document = open_document(body)
        invitation = document.get("invitation")
        if set(document) != {"invitation"} or not isinstance(invitation, str):
            raise TrustError("not a question for a challenge", code="malformed")
        self._invitations.find(invitation, int(self._clock()))
        used = self._federation.registry.used(invitation) is not None
        answer: Json = {"challenge": self._make_challenge(invitation), "used": used}
        return encode(answer)

    def join(self, body: bytes) -> bytes:
        """Enrol a client that brings an invitation; the coordinator's signed answer.

        Raises:
            TrustError: refused, and nothing was changed; ``code`` says why.
            OperationError: the disk refused, and nothing was changed.
        """
        now = int(self._clock())
        signed = SignedJoin.decode(body)
        invited = self._invitations.find(signed.invitation, now)
        join = signed.verify(invited.key)
        self._check_meant(join)
        self._check_challenge(join, now)
        if join.name != invited.name:
            raise TrustError("the invitation is for another name", code="wrong-name")
        entry = self._federation.registry.enrol(join)
        return enrolment_of(entry, self._said(), self._key).sign(self._key)

    def _check_meant(self, join: Join) -> None:
        check_meant(join, self._key.public.fingerprint, self._authority)

    def _make_challenge(self, invitation: str, until: int | None = None) -> str:
        """The time it ends, and a MAC of that: nothing has to be remembered."""
        end = int(self._clock()) + CHALLENGE_SECONDS if until is None else until
        mac = hmac.digest(self._secret, encode([invitation, end]), "sha256").hex()
        return f"{end:016x}{mac}"

    def _check_challenge(self, join: Join, now: int) -> None:
        text = join.challenge
        try:
            end = int(text[:16], 16)
            expected = self._make_challenge(join.invitation, end)
        except ValueError as error:  # not a time, or one that no integer here holds
            raise TrustError("no challenge of this server", code="stale-challenge") from error
        if not hmac.compare_digest(text, expected) or end < now:
            raise TrustError(
                "that challenge is not this server's, or too old", code="stale-challenge"
            )


def admit_request(federation: Federation, signed: SignedJoin) -> Join:
    """Check a request that came as a file; who sent it, a person has to know.

    Raises:
        TrustError: its proofs are wrong, or it is meant for others.
    """
    join = signed.verify(None)
    key = federation.signing_key().public.fingerprint
    check_meant(join, key, federation.authority().fingerprint)
    return join


def approve_request(federation: Federation, join: Join) -> bytes:
    """Enrol the sender of a request file that :func:`admit_request` let pass; the signed answer."""
    key = federation.signing_key()
    entry = federation.registry.enrol(join)
    return enrolment_of(entry, federation.about(), key).sign(key)


def enrolment_of(entry: Enrolled, about: About, key: SigningKey) -> Enrolment:
    """What the coordinator says of a line of its registry."""
    return Enrolment(
        name=entry.name,
        pseudonym=entry.pseudonym,
        ledger_key=entry.ledger_key,
        node_key=entry.node_key,
        federation=key.public.fingerprint,
        address=about.address,
        authority=about.authority,
        approver=about.approver,
        invitation=entry.invitation,
        enrolled=entry.enrolled,
    )


def check_meant(join: Join, federation: str, authority: str) -> None:
    """Refuse a request that was signed for another federation or authority."""
    if (join.federation, join.authority) != (federation, authority):
        raise TrustError("the request is meant for another federation", code="wrong-federation")
