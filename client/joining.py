"""How does a device join a federation that it knows nothing of but one token?

The rules: the token says whom to trust, and nobody else is. The first connection proves nothing and
sends nothing: it fetches who the server says it is, and that has to carry the token's two
fingerprints. Every later one is TLS 1.3 against that authority alone, by host name. The token's own
secret is never sent: it signs. What the server refuses leaves the device as it was; what is not
known to be refused leaves its keys, so that the same command can be repeated.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from client.home import Home
from client.site import Site, enrolled_by, make_keys, node_file
from common.canonical import encode
from common.enrolment import (
    ABOUT_PATH,
    CHALLENGE_PATH,
    JOIN_PATH,
    MAX_BYTES,
    About,
    Enrolment,
    certificate_fingerprint,
    open_document,
)
from common.errors import NetworkError, TrustError
from common.invitation import Address, Invitation
from common.keys import KeyDirectory

TIMEOUT_SECONDS = 15.0
TRIES = 4

# What the operator's side may say, and what to do about it.
_HINTS = {
    "unknown-invitation": "it was withdrawn, or is another server's: ask for a new one",
    "invitation-expired": "ask the operator for a new invitation",
    "invitation-used": "an invitation is for one client: ask the operator for another one",
    "wrong-name": "ask the operator for an invitation for this name",
    "name-taken": "ask the operator for an invitation for another name",
    "key-known": "each client has keys of its own: name another key directory",
    "revoked": "this client was revoked: ask for a new invitation, and use new keys",
    "stale-challenge": "run the command again",
    "bad-signature": "run the command again",
}


@dataclass(frozen=True)
class Clock:
    """The time of day, seconds since 1970, and a way to let some pass."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


def join(invitation: Invitation, site: Site, clock: Clock | None = None) -> Home:
    """Join with an invitation; joining again with the same one changes nothing.

    Raises:
        TrustError: ``invitation-expired`` and the other codes of a server; ``wrong-authority``,
            ``wrong-coordinator``, ``wrong-certificate``: that is not the server which the token
            means. Nothing was changed.
        NetworkError: no answer; the same command can be repeated.
        PrivetError: as :meth:`client.site.Site.dataset`.
    """
    clock = clock or Clock()
    if home := enrolled_by(site.home, invitation.id):
        return home
    dataset = site.dataset()
    begun = KeyDirectory(site.keys).has(node_file(invitation.name, invitation.federation))
    if clock.now() >= invitation.expires and not begun:
        raise _refused("invitation-expired")
    line = Line(invitation.address, clock)
    about, coordinator = About.verify(line.introduce(), invitation.federation)
    check_authority(about.authority, invitation.authority)
    line.pin(about.authority)
    question = encode({"invitation": invitation.id})
    answer = open_document(line.ask(CHALLENGE_PATH, question))
    challenge, used = answer.get("challenge"), answer.get("used")
    if not isinstance(challenge, str):
        raise TrustError("the server gave no challenge", code="malformed")
    keys = make_keys(site, dataset, invitation.name, invitation.federation)
    try:
        if used and keys.made:
            raise _refused("invitation-used")  # by somebody who had other keys than these
        asked = keys.join(
            invitation.name,
            invitation.federation,
            invitation.authority,
            invitation=invitation.id,
            challenge=challenge,
        )
        body = asked.sign(keys.identity.key, keys.node, invitation.key)
        signed = line.ask(JOIN_PATH, body)
    except TrustError:
        keys.forget()
        raise
    enrolment = Enrolment.verify(signed, coordinator)
    if not enrolment.answers(asked) or enrolment.authority != about.authority:
        raise TrustError("the server enrolled something else than was asked", code="malformed")
    return site.settle(signed, enrolment, coordinator)


def check_authority(certificate: str, expected: str) -> None:
    """Refuse a certificate (PEM) whose DER has another SHA-256 than expected."""
    found = certificate_fingerprint(certificate)
    if found != expected:
        raise TrustError(
            f"the server's authority is {found[:16]}…, expected {expected[:16]}…",
            hint="somebody is between you and the server, or it was set up anew: ask its operator",
            code="wrong-authority",
        )


class Line:
    """Connections to one server, one request each.

    Args:
        address: where it is.
        clock: for waiting until it has time.
    """

    def __init__(self, address: Address, clock: Clock) -> None:
        self._address, self._clock = address, clock
        self._context: ssl.SSLContext | None = None

    def pin(self, authority: str) -> None:
        """From now on, only what this authority (PEM) vouches for, by name."""
        context = _context()
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=authority)
        self._context = context

    def introduce(self) -> bytes:
        """Who the server says it is: fetched from whoever answers, who hears nothing from us."""
        context = _context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return self._repeat("GET", ABOUT_PATH, None, context)

    def ask(self, path: str, body: bytes | None) -> bytes:
        """Send ``body``, or only ask, over a pinned connection; the answer, at most 16 KiB.

        Raises:
            TrustError: refused, or the certificate is not the server's.
            NetworkError: no answer.
        """
        assert self._context is not None, "nothing is sent to a server that is not pinned"
        return self._repeat("GET" if body is None else "POST", path, body, self._context)

    def _repeat(self, method: str, path: str, body: bytes | None, tls: ssl.SSLContext) -> bytes:
        for attempt in range(TRIES):
            status, answer = self._once(method, path, body, tls)
            if status == 200:
                return answer
            if status not in (429, 503):
                break
            if attempt + 1 < TRIES:
                self._clock.sleep(2.0**attempt)
        code = _code(answer)
        if status in (400, 403):
            raise _refused(code)
        raise NetworkError(
            f"{self._address} answered {status} ({code})",
            hint="try again later; if it stays so, ask the operator",
            code="server-busy" if status in (429, 503) else "unexpected-answer",
        )

    def _once(
        self, method: str, path: str, body: bytes | None, tls: ssl.SSLContext
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            self._address.host, self._address.port, timeout=TIMEOUT_SECONDS, context=tls
        )
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read(MAX_BYTES + 1)
        except ssl.SSLCertVerificationError as error:
            raise TrustError(
                f"the certificate of {self._address} does not hold: {error.verify_message}",
                hint="if it is not valid yet, or no longer, check this machine's clock first; if "
                "the name differs, the operator has to add it: privet server rotate --name",
                code="wrong-certificate",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(
                f"no answer from {self._address}: {error or type(error).__name__}",
                hint="check that the server runs, and that this machine can reach it; then run "
                "the same command again",
                code="no-answer",
            ) from error
        finally:
            connection.close()
        if len(answer) > MAX_BYTES:
            raise NetworkError(f"{self._address} answers too much", code="unexpected-answer")
        return response.status, answer


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _code(answer: bytes) -> str:
    """The code in a refusal, if it is one that a server of ours would send."""
    try:
        code = open_document(answer).get("error")
    except TrustError:
        return "unexpected-answer"
    known = isinstance(code, str) and re.fullmatch(r"[a-z-]{1,40}", code)
    return str(code) if known else "unexpected-answer"


def _refused(code: str) -> TrustError:
    words = code.replace("-", " ")
    hint = _HINTS.get(code, "ask the operator of the server")
    return TrustError(f"the server refused: {words}", hint=hint, code=code)
