"""May this release be used here? A function of bytes, the owner's policy and trusted keys.

The rule: what comes back was checked in every respect, in this order, and holds the very bytes that
were checked; anything else is a :class:`~common.errors.TrustError`. Files and lengths; the privacy
statement's signatures, before it is parsed; the digests that it and ``release.json`` name; that
both say the same; not older than what was accepted; the owner's limits on privacy; the weights'
format and tensors; the model loads from memory; it gives the known answers. No file, clock or
network is used.

Whether the epsilon was computed rightly is not checked here: that is what the signers vouch for,
and what an auditor recomputes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from client.device import succession
from client.device.documents import AGAIN, Predicate, ReleaseDocument, claims_of
from client.device.policy import DevicePolicy
from client.device.release import LIMITS, Candidate
from client.device.terms import check_claims
from common import weights
from common.canonical import digest, encode
from common.errors import TrustError
from common.inference import KnownAnswers, Session
from common.keys import PublicKey
from common.release import ANSWERS, MODEL, RELEASE, STATEMENT, WEIGHTS
from common.statement import INTOTO_TYPE, Envelope, read_privacy_statement


def verify(
    files: Mapping[str, bytes],
    policy: DevicePolicy,
    keys: Iterable[PublicKey],
    *,
    successors: Callable[[], Mapping[str, str]],
    floor: int = 0,
    name: str | None = None,
    known: Mapping[str, str] | None = None,
) -> Candidate:
    """Check a release in full.

    Args:
        files: exactly the files of a release; without the weights if their digest is ``known``.
        keys: public keys from anywhere; only those whose fingerprints the policy names count.
        successors: gives fingerprints that may count in a signer's place, each with the signer's;
            asked only if too few of the signers themselves have signed.
        floor: the least version that may be accepted.
        name: the model that this device runs; None if it has none yet.
        known: SHA-256, by name, of files that were verified before and authenticated since.

    Raises:
        TrustError: the first thing that is wrong. Exit code 11, always.
    """
    _check_lengths(files, known or {})
    digests = {name: digest(data) for name, data in files.items() if name not in (known or {})}
    digests.update(known or {})
    envelope = Envelope.decode(files[STATEMENT])
    known_keys = tuple(keys)
    predicate = _check_statement(envelope, digests, policy, known_keys, successors)
    release = ReleaseDocument.read(files[RELEASE])
    _check_digests(files, digests, release.files)
    _check_agreement(release, predicate)
    _check_version(release, floor, name)
    claims = claims_of(release, predicate)
    check_claims(claims, policy)
    if WEIGHTS in files:
        _check_weights(files[WEIGHTS], release)
    session = Session(files[MODEL], release.schema)
    KnownAnswers.decode(files[ANSWERS], release.schema).check(session)
    signers = envelope.signers(INTOTO_TYPE, known_keys)
    return Candidate(claims, dict(files), digests, signers, session)


def label(data: bytes) -> tuple[str | None, int | None]:
    """Name and version that a ``release.json`` claims, for a log; (None, None) if unreadable."""
    try:
        release = ReleaseDocument.read(data)
    except TrustError:
        return None, None
    return release.name, release.version


# -- the checks, in order --------------------------------------------------------------------------


def _check_lengths(files: Mapping[str, bytes], known: Mapping[str, str]) -> None:
    left_out = {WEIGHTS} & set(known) - set(files)
    if set(files) != set(LIMITS) - left_out:
        raise TrustError(f"a release has the files {sorted(LIMITS)}, not {sorted(files)}")
    for name, data in files.items():
        if len(data) > LIMITS[name]:
            raise TrustError(f"{name} has {len(data)} bytes, over {LIMITS[name]}")


def _check_statement(
    envelope: Envelope,
    digests: Mapping[str, str],
    policy: DevicePolicy,
    keys: Iterable[PublicKey],
    successors: Callable[[], Mapping[str, str]],
) -> Predicate:
    payload = succession.payload(envelope, policy, keys, successors)
    subjects, predicate = read_privacy_statement(payload)
    for name in (WEIGHTS, MODEL):
        if subjects.get(name) != digests[name]:
            raise TrustError(
                f"the privacy statement is about another {name}", hint=AGAIN, code="wrong-digest"
            )
    return Predicate.read(predicate)


def _check_digests(
    files: Mapping[str, bytes],
    digests: Mapping[str, str],
    expected: Mapping[str, tuple[str, int]],
) -> None:
    for name, (sha256, length) in expected.items():
        if digests[name] != sha256 or (name in files and len(files[name]) != length):
            raise TrustError(
                f"{name} is not the file that {RELEASE} names", hint=AGAIN, code="wrong-digest"
            )


def _check_agreement(release: ReleaseDocument, predicate: Predicate) -> None:
    said = (release.name, release.version, release.plan, release.simulated)
    stated = (predicate.name, predicate.version, predicate.plan, predicate.simulated)
    if said != stated:
        raise TrustError(
            f"{RELEASE} says {said}, the privacy statement {stated}",
            hint=AGAIN,
            code="mixed-release",
        )
    if digest(encode(release.schema.json())) != predicate.schema:
        raise TrustError(
            f"the schema in {RELEASE} is not the one of the privacy statement",
            hint=AGAIN,
            code="mixed-release",
        )


def _check_version(release: ReleaseDocument, floor: int, name: str | None) -> None:
    if name is not None and release.name != name:
        raise TrustError(
            f"this device runs {name!r}; the release is {release.name!r}",
            hint="enrol another device directory, with other keys, for another model",
            code="other-model",
        )
    if release.version < floor:
        raise TrustError(
            f"{release.name} version {release.version} is older than version {floor}, "
            "which this device has accepted before",
            hint="the repository shows an old release: find out who put it there",
            code="rollback",
        )


def _check_weights(data: bytes, release: ReleaseDocument) -> None:
    """A sound file, of exactly the tensors that the release names."""
    found = weights.check(data)
    if found != release.tensors:
        odd = sorted(name for name, _ in found.items() ^ release.tensors.items())
        raise TrustError(
            f"{WEIGHTS} and {RELEASE} differ about tensor {odd[0]!r:.80}: {found.get(odd[0])} and "
            f"{release.tensors.get(odd[0])}",
            hint=AGAIN,
            code="other-tensors",
        )
