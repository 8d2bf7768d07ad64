"""Who may sign what? Root metadata: the keys of three parties, and what each of them is for.

The rules (The Update Framework 1.0): root needs two of coordinator, approver and recovery key;
targets need coordinator *and* approver; snapshot and timestamp are the coordinator's alone.
Top-level targets only: python-tuf does not verify a delegated role again when two roles delegate to
it. The federation's own key signs statements; while it is the coordinator's here too, nothing more
is said, and afterwards a root lists it among its keys, without a role, so that devices know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from common.errors import InputError, TrustError
from common.keys import PublicKey, SigningKey

COORDINATOR, APPROVER, RECOVERY = PARTIES = ("coordinator", "approver", "recovery")
MAY = {
    COORDINATOR: "half of root, half of targets, and alone snapshot and timestamp",
    APPROVER: "half of root and half of targets",
    RECOVERY: "half of root, for the day on which another key is lost or stolen",
}
RESTORE = (
    "restore the repository from a copy, and find out who changed it; if a change of keys was "
    "interrupted, commit it again"
)

Role = TypeVar("Role", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class Expiry:
    """How long devices may believe each kind of metadata.

    ``timestamp`` bounds how long an old release can be replayed to a device that has never seen a
    newer one, so it is short, for simulated releases too; a repository's ``renew`` extends it.
    """

    timestamp: timedelta = timedelta(days=7)
    snapshot: timedelta = timedelta(days=30)
    targets: timedelta = timedelta(days=365)
    root: timedelta = timedelta(days=3 * 365)


DEFAULT = Expiry()
SKEW = timedelta(days=1)  # between the clocks of two parties


@dataclass(frozen=True)
class Roles:
    """The three keys of a repository, held by three different parties: else no threshold.

    Args:
        coordinator: signs targets, and alone snapshot and timestamp.
        approver: signs targets.
        recovery: signs nothing but roots.
        federation: signs privacy statements in the coordinator's stead; None: the coordinator does.
    """

    coordinator: PublicKey
    approver: PublicKey
    recovery: PublicKey
    federation: PublicKey | None = None

    def __post_init__(self) -> None:
        if len(self.known) != 3 + (self.federation is not None):
            raise InputError(
                "coordinator, approver and recovery key must be three different keys",
                hint="make the missing key on the machine of the party that will hold it",
            )

    @property
    def keys(self) -> Mapping[str, PublicKey]:
        """By party, the key that signs metadata."""
        return {COORDINATOR: self.coordinator, APPROVER: self.approver, RECOVERY: self.recovery}

    @property
    def speaker(self) -> PublicKey:
        """The federation's key: the coordinator's half of a privacy statement is signed by it."""
        return self.federation or self.coordinator

    @property
    def known(self) -> set[PublicKey]:
        """Every key that a root of these roles lists."""
        return {*self.keys.values(), self.speaker}

    def succeeded(self, party: str, key: PublicKey, *, speaks: bool = False) -> Roles:
        """The same, with another key for one party.

        Args:
            speaks: a coordinator's new key is another federation's, and signs its statements too.
        """
        if party == COORDINATOR:
            return replace(self, coordinator=key, federation=None if speaks else self.speaker)
        return replace(self, **{party: key})


def draft_root(roles: Roles, now: datetime, expiry: Expiry = DEFAULT, *, version: int = 1) -> bytes:
    """Unsigned root metadata, for parties in different processes. Writes nothing."""
    return Metadata(_root_of(roles, version, now + expiry.root)).to_bytes()


def sign_root(draft: bytes, signer: SigningKey) -> bytes:
    """The same root metadata with one signature more."""
    root = parse(draft, Root)
    sign(root, [signer])
    return root.to_bytes()


def roles_in(root: bytes) -> Roles:
    """Whose keys root metadata names; TrustError unless :func:`draft_root` made it."""
    signed = parse(root, Root).signed
    try:
        every = {id_: PublicKey(bytes.fromhex(key.keyval["public"])) for id_, key in
                 signed.keys.items()}  # fmt: skip
        held = {role: [every[id_] for id_ in found.keyids] for role, found in signed.roles.items()}
        (coordinator,), (_, approver) = held["timestamp"], held["targets"]
        (recovery,) = set(held["root"]) - {coordinator, approver}
        more = set(every.values()) - set(held["root"])
        federation = more.pop() if len(more) == 1 else None
        roles = Roles(coordinator, approver, recovery, federation)
    except (KeyError, ValueError, InputError, TrustError) as error:
        raise TrustError("root metadata with other roles than ours", code="wrong-root") from error
    if signed != _root_of(roles, signed.version, signed.expires):
        raise TrustError(
            "root metadata with other roles or thresholds than ours", code="wrong-root"
        )
    return roles


def verified_chain(roots: Sequence[bytes]) -> list[Root]:
    """Roots that follow one another, each signed as the one before and as it itself requires.

    Raises:
        TrustError: one is missing, or is not signed so.
    """
    if not roots:
        raise TrustError("there is no root", hint=RESTORE)
    chain: list[Root] = []
    for version, data in enumerate(roots, 1):
        root = parse(data, Root)
        if root.signed.version != version:
            raise TrustError(f"root version {version} is missing", hint=RESTORE)
        for judge in (*chain[-1:], root.signed):
            require(judge, root)
        chain.append(root.signed)
    return chain


def who_signed(metadata: Metadata[Role], keys: Sequence[PublicKey]) -> set[PublicKey]:
    """Which of these keys' signatures are on metadata, and valid."""
    found, message = set(), metadata.signed_bytes
    for key in keys:
        signature = metadata.signatures.get(tuf_key(key).keyid)
        try:
            data = bytes.fromhex(signature.signature) if signature else b""
        except ValueError:
            continue
        if data and key.verify(data, message):
            found.add(key)
    return found


def sign(metadata: Metadata[Role], signers: Sequence[SigningKey]) -> None:
    for signer in signers:
        metadata.sign(CryptoSigner(signer.ed25519), append=True)


def require(root: Root, metadata: Metadata[Role]) -> None:
    """Refuse metadata that devices would refuse for its signatures."""
    try:
        root.verify_delegate(metadata.signed.type, metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise TrustError(
            f"{metadata.signed.type} metadata is not signed as the root requires: {error}",
            hint="root: two of coordinator, approver, recovery key; targets: coordinator and "
            "approver; snapshot and timestamp: coordinator",
            code="bad-signature",
        ) from error


def check_expiry(signed: Root | Targets, now: datetime) -> None:
    """Refuse to sign, or put in force, what has ended or would be believed for too long.

    Raises:
        TrustError: ``wrong-expiry``.
    """
    life = DEFAULT.root if isinstance(signed, Root) else DEFAULT.targets
    if not now < signed.expires <= now + life + SKEW:
        raise TrustError(
            f"{signed.type} metadata would end on {signed.expires:%Y-%m-%d}: that is past, or over "
            f"{life.days} days away",
            hint="compare the clocks, and have it drafted again",
            code="wrong-expiry",
        )


def parse(data: bytes, kind: type[Role]) -> Metadata[Role]:
    """Metadata of one kind from untrusted bytes; its signatures are not verified."""
    try:
        metadata: Metadata[Role] = Metadata.from_bytes(data)
    except RepositoryError as error:
        raise TrustError(f"not TUF metadata: {error}", hint=RESTORE) from error
    if not isinstance(metadata.signed, kind):
        raise TrustError(f"{metadata.signed.type} metadata where {kind.type} was expected")
    return metadata


def tuf_key(key: PublicKey) -> SSlibKey:
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key.raw))


def _root_of(roles: Roles, version: int, expires: datetime) -> Root:
    root = Root(version=version, expires=expires, consistent_snapshot=True)
    coordinator, approver, recovery = map(tuf_key, roles.keys.values())
    members = {
        "root": (2, (coordinator, approver, recovery)),
        "targets": (2, (coordinator, approver)),
        "snapshot": (1, (coordinator,)),
        "timestamp": (1, (coordinator,)),
    }
    for role, (threshold, keys) in members.items():
        for key in keys:
            root.add_key(key, role)
        root.roles[role].threshold = threshold
    if roles.federation is not None:
        listed = tuf_key(roles.federation)
        root.keys[listed.keyid] = listed
    return root
