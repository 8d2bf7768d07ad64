"""Which root does a federation's first release bring, and who has to have agreed to it?

The rule: the first release brings the repository's first root and no other release brings any, for
every later root is a change of keys (:mod:`server.release.succession`). Each party signs or founds
it only if it names three keys that this party knows, and no fourth: who holds two, holds all.
"""

from __future__ import annotations

from datetime import datetime

from tuf.api.metadata import Root  # type: ignore[attr-defined]

from common.errors import InputError, TrustError
from common.keys import PublicKey
from server.release.roots import check_expiry, parse, roles_in, who_signed


def is_first(version: int, root: bytes | None) -> bool:
    """Whether this is a repository's first release.

    Raises:
        TrustError: ``wrong-root``: a first release lacks a root, or a later one brings one.
    """
    if (version == 1) is not (root is not None):
        raise TrustError(
            f"release {version} {'lacks' if root is None else 'brings'} a root: the first release "
            "brings one, and no other does",
            hint="sign nothing; keys are changed by privet release rotate and privet release "
            "revoke alone",
            code="wrong-root",
        )
    return root is not None


def check_root(
    root: bytes, coordinator: str, approver: str, recovery: str | None, now: datetime
) -> None:
    """Whether an approver may sign a proposed root: fingerprints got by another way are in it.

    Raises:
        InputError: ``recovery-unknown``: that fingerprint is missing.
        TrustError: ``wrong-root``; ``wrong-expiry``.
    """
    if recovery is None:
        raise InputError(
            "the first release makes the repository, and its recovery key is half of every root",
            hint="--recovery HEX: the fingerprint, as whoever holds that key tells you",
            code="recovery-unknown",
        )
    first, roles = parse(root, Root).signed, roles_in(root)
    named = [key.fingerprint for key in roles.keys.values()]
    expected = [coordinator, approver, recovery]
    if first.version != 1 or roles.federation is not None or named != expected:
        raise TrustError(
            "the repository's root is not the first one of the coordinator's key, yours and the "
            "recovery key that you named",
            hint="sign nothing; compare the fingerprints with the other two parties",
            code="wrong-root",
        )
    check_expiry(first, now)


def agreed_root(
    proposed: bytes | None, returned: bytes | None, coordinator: PublicKey, approver: str
) -> bytes:
    """The root that came back from the approver, if the coordinator proposed and signed it.

    Raises:
        TrustError: ``wrong-root``: it is another one, or none.
    """
    ours, root = parse(proposed or b"", Root), parse(returned or b"", Root)
    if (
        root.signed_bytes != ours.signed_bytes
        or roles_in(root.to_bytes()).approver.fingerprint != approver
        or coordinator not in who_signed(root, [coordinator])
    ):
        raise TrustError(
            "the approver signed another root than this coordinator proposed",
            hint="publish nothing; ask the approver, and propose the run again",
            code="wrong-root",
        )
    return root.to_bytes()
