"""How does a repository stand? Who may sign what, until when it is believed, whether it is whole.

The rule: everything is read and verified as a device would, and no key is needed, so anybody can
ask this of any copy. What is wrong is a finding, not an end: the rest is still told.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from common.errors import EXIT_FAILED, EXIT_OK, EXIT_TRUST, TrustError
from server.release.published import Published, Signed
from server.release.roots import MAY, PARTIES, Expiry, roles_in

# With less than this left somebody should have renewed it.
SOON = Expiry(
    timestamp=timedelta(days=2),
    snapshot=timedelta(days=7),
    targets=timedelta(days=30),
    root=timedelta(days=90),
)
FINE, NEAR, PAST = "ok", "soon", "past"
MEND = {
    "root": "replace a key: privet release rotate recovery draws the new root up for three years",
    "targets": "publish a release: its two signatures hold for a year",
    "snapshot": "privet release renew, which a link does by itself",
    "timestamp": "privet release renew, which a link does by itself",
}


@dataclass(frozen=True)
class Standing:
    """What :func:`standing` found.

    Args:
        keys: rows of party, fingerprint, public key, what it may sign, and between which versions
            of the root; the newest first for each party.
        metadata: rows of role, version, expiry, state (``ok``, ``soon`` or ``past``).
        files: published file name to length, bytes.
        problems: what is wrong, and how it is mended.
        exit_code: 0; 1: something ends soon; 11: devices refuse what is there.
    """

    keys: list[dict[str, Any]]
    metadata: list[dict[str, Any]]
    files: dict[str, int]
    problems: list[dict[str, str]]
    exit_code: int

    def json(self) -> dict[str, Any]:
        return {
            "keys": self.keys,
            "thresholds": {"root": 2, "targets": 2, "snapshot": 1, "timestamp": 1},
            "metadata": self.metadata,
            "files": self.files,
            "problems": self.problems,
        }


def standing(repository: Published, now: datetime) -> Standing:
    """Look at all of it.

    Raises:
        TrustError: the roots do not follow one another, or are not of our making.
    """
    problems, code = [], EXIT_OK
    keys, metadata, files = keys_of(repository), [], {}
    try:
        signed = repository.signed()
        for one in signed:
            state = state_of(one, now)
            metadata.append(
                {
                    "role": one.role,
                    "version": one.version,
                    "expires": one.expires.isoformat(),
                    "state": state,
                }
            )
            if state != FINE:
                words = "expired" if state == PAST else "expires"
                what = f"{one.role} version {one.version} {words} {one.expires:%Y-%m-%d %H:%M} UTC"
                problems.append({"code": f"{one.role}-{state}", "what": what,
                                 "mend": MEND[one.role]})  # fmt: skip
                code = max(code, EXIT_TRUST if state == PAST else EXIT_FAILED)
        files = repository.files()
    except TrustError as error:
        problems.append({"code": error.code, "what": error.message, "mend": error.hint})
        code = EXIT_TRUST
    return Standing(keys, metadata, files, problems, code)


def keys_of(repository: Published) -> list[dict[str, Any]]:
    """Whose keys count and counted, as the chain of roots says it.

    Raises:
        TrustError: the roots do not follow one another, or are not of our making.
    """
    history = [roles_in(root) for root in repository.roots()]
    rows = []
    for party in PARTIES:
        held = [roles.keys[party] for roles in history]
        for key in dict.fromkeys(reversed(held)):
            last = len(held) - held[::-1].index(key)
            rows.append(
                {
                    "party": party,
                    "fingerprint": key.fingerprint,
                    "public_key": key.text(),
                    "may": MAY[party] if last == len(held) else "nothing any more",
                    "since": held.index(key) + 1,
                    "until": None if last == len(held) else last,
                }
            )
    newest = history[-1]
    if newest.federation is not None:
        since = next(number for number, roles in enumerate(history, 1)
                     if roles.speaker == newest.speaker)  # fmt: skip
        rows.append(
            {
                "party": "federation",
                "fingerprint": newest.speaker.fingerprint,
                "public_key": newest.speaker.text(),
                "may": "half of a privacy statement, and no metadata",
                "since": since,
                "until": None,
            }
        )
    return rows


def state_of(signed: Signed, now: datetime) -> str:
    """``ok``, ``soon`` or ``past``: whether devices believe it, and for a while yet."""
    left = signed.expires - now
    if left <= timedelta(0):
        return PAST
    return NEAR if left < getattr(SOON, signed.role) else FINE
