"""Who may sign in a signer's stead? Whomever a root put in its place, if the owner lets it.

The rules: a policy names keys, and a key that is not named counts for nothing by itself. Roots that
followed from the one of enrolment say whose key replaced whose: two of three parties signed each.
An owner who set ``follow_root`` lets a successor sign in the place of the key that is named; else
the release is refused, and told why. A key and its successors are one party, and one signature.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from common.errors import TrustError
from common.keys import PublicKey
from common.statement import INTOTO_TYPE, Envelope

if TYPE_CHECKING:
    from tuf.api.metadata import Root  # type: ignore[attr-defined]

    from client.device.policy import DevicePolicy


def successors(roots: Iterable[bytes], signers: Collection[str]) -> dict[str, str]:
    """Fingerprints of keys that took a signer's place, each with the signer's.

    Args:
        roots: the root of enrolment, and those that a device kept of what followed.
        signers: fingerprints that a policy names.
    """
    found: dict[str, str] = {}
    held: dict[str, str] = {}  # by place, whose turn it is among the signers
    for places in _chain(roots):
        for place, fingerprint in places.items():
            if fingerprint in signers:
                held[place] = fingerprint
            elif place in held:
                found[fingerprint] = held[place]
    return found


def payload(
    envelope: Envelope,
    policy: DevicePolicy,
    keys: Iterable[PublicKey],
    successors: Callable[[], Mapping[str, str]],
) -> bytes:
    """A statement's payload, once as many parties as the policy wants have signed it.

    Raises:
        TrustError: ``bad-signature``: too few have. ``successor``: enough have, if the owner lets a
            root name successors.
    """
    known = list(keys)
    named = [key for key in known if key.fingerprint in policy.signers]
    try:
        return envelope.verify(INTOTO_TYPE, named, policy.threshold)
    except TrustError as error:
        signed = _parties(envelope, policy.signers, known, successors())
        if len(signed) < policy.threshold:
            raise
        if policy.follow_root:
            return envelope.payload
        old, new = next((old, new) for old, new in signed.items() if old != new)
        raise TrustError(
            f"this release is signed by the key {new}, which took the place of {old} in the "
            "repository's root; this device's policy names the old one",
            hint="compare the new fingerprint with its holder's; then privet device trust "
            "--signers FILE names it, and --follow-root leaves that to two of three parties",
            code="successor",
        ) from error


def _parties(
    envelope: Envelope,
    signers: Collection[str],
    keys: Sequence[PublicKey],
    successors: Mapping[str, str],
) -> dict[str, str]:
    """By signer of the policy who signed, or whose successor did: the key that did."""
    found = {}
    for key in keys:
        own = key.fingerprint in signers
        party = key.fingerprint if own else successors.get(key.fingerprint)
        if party is None or (party in found and not own):
            continue
        try:
            envelope.verify(INTOTO_TYPE, [key])
        except TrustError:
            continue
        found[party] = key.fingerprint
    return found


def _chain(roots: Iterable[bytes]) -> list[dict[str, str]]:
    """Who is in which place, root by root, as far as each follows from the one before."""
    from tuf.api.exceptions import RepositoryError  # not where a model is only run
    from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

    parsed = []
    for data in roots:
        try:
            metadata: Metadata[Root] = Metadata.from_bytes(data)
        except RepositoryError:
            continue
        if isinstance(metadata.signed, Root):
            parsed.append(metadata)
    parsed.sort(key=lambda root: int(root.signed.version))
    chain: list[dict[str, str]] = []
    before: Root | None = None
    for metadata in parsed:
        root = metadata.signed
        try:
            for judge in (before or root, root):
                judge.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
        except RepositoryError:
            break
        if before is not None and root.version != before.version + 1:
            break
        before = root
        chain.append(_places(root))
    return chain


def _places(root: Root) -> dict[str, str]:
    """Whose key signs a statement as coordinator and as approver; nothing in a root not of ours.

    The coordinator's is the one that is listed without a role, where its role has another key.
    """
    timestamp, targets = root.roles["timestamp"].keyids, root.roles["targets"].keyids
    approvers = [one for one in targets if one not in timestamp]
    listed = set(root.keys).difference(*(role.keyids for role in root.roles.values()))
    speakers = list(listed or timestamp)
    if (len(timestamp), len(approvers), len(speakers)) != (1, 1, 1):
        return {}
    try:
        raw = [bytes.fromhex(root.keys[one].keyval["public"]) for one in (*speakers, *approvers)]
        coordinator, approver = (PublicKey(key).fingerprint for key in raw)
    except (KeyError, ValueError, TrustError):
        return {}
    return {"coordinator": coordinator, "approver": approver}
