"""Publish releases as a TUF repository: a directory that any file server can hand out.

The rule: nothing is written before the signatures that devices will ask for are there and valid,
and ``timestamp.json`` is written last, so that a publish that is killed leaves the former release
whole. A directory that was changed by somebody else is refused, never signed over.

Roles (The Update Framework 1.0): root needs two of coordinator, approver and recovery key; targets
need coordinator *and* approver; snapshot and timestamp are the coordinator's alone. Top-level
targets only: python-tuf does not verify a delegated role again when two roles delegate to it.
Snapshots are consistent, and timestamp and snapshot carry lengths and digests, so every byte that a
device reads is covered.

    metadata/  1.root.json  N.targets.json  N.snapshot.json  timestamp.json
    targets/   SHA256.NAME
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from common import durable
from common.config import NAME
from common.errors import InputError, OperationError, TrustError
from common.keys import PublicKey, SigningKey

METADATA = "metadata"
TARGETS = "targets"

_Role = TypeVar("_Role", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class Roles:
    """The three keys of a repository, held by three different parties: else no threshold."""

    coordinator: PublicKey
    approver: PublicKey
    recovery: PublicKey

    def __post_init__(self) -> None:
        if len({self.coordinator, self.approver, self.recovery}) != 3:
            raise InputError(
                "coordinator, approver and recovery key must be three different keys",
                hint="make the missing key on the machine of the party that will hold it",
            )


@dataclass(frozen=True)
class Expiry:
    """How long devices may believe each kind of metadata.

    ``timestamp`` bounds how long an old release can be replayed to a device that has never seen a
    newer one, so it is short, for simulated releases too; :meth:`Repository.renew` extends it.
    """

    timestamp: timedelta = timedelta(days=7)
    snapshot: timedelta = timedelta(days=30)
    targets: timedelta = timedelta(days=365)
    root: timedelta = timedelta(days=3 * 365)


class Repository:
    """A TUF repository in a directory. Every call reads it afresh; one process at a time publishes.

    Args:
        path: made by :meth:`create`.
        expiry: of what is signed from now on.

    Raises:
        OperationError: there is no repository.
        TrustError: what is there does not verify.
    """

    def __init__(self, path: Path, expiry: Expiry = Expiry()) -> None:
        self.path = path
        self.expiry = expiry
        self._root = self._read_root()

    @classmethod
    def create(
        cls,
        path: Path,
        root_signers: Sequence[SigningKey],
        roles: Roles,
        now: datetime,
        expiry: Expiry = Expiry(),
    ) -> Repository:
        """Make an empty repository, whose root devices are given at enrolment.

        Args:
            root_signers: at least two of the three keys of ``roles``.
            now: aware date and time.
        """
        root = cls.draft_root(roles, now, expiry)
        for signer in root_signers:
            root = cls.sign_root(root, signer)
        return cls.found(path, root, expiry)

    @staticmethod
    def draft_root(roles: Roles, now: datetime, expiry: Expiry = Expiry()) -> bytes:
        """Unsigned root metadata, for two parties in two processes. Writes nothing."""
        return Metadata(_root_of(roles, now + expiry.root)).to_bytes()

    @staticmethod
    def sign_root(draft: bytes, signer: SigningKey) -> bytes:
        """The same root metadata with one signature more."""
        root = _parse(draft, Root)
        _sign(root, [signer])
        return root.to_bytes()

    @staticmethod
    def roles_in(root: bytes) -> Roles:
        """Whose keys root metadata names; TrustError unless :meth:`draft_root` made it."""
        signed = _parse(root, Root).signed
        try:
            keys = {
                role: [bytes.fromhex(signed.keys[id_].keyval["public"]) for id_ in found.keyids]
                for role, found in signed.roles.items()
            }
            (coordinator,), (_, approver) = keys["timestamp"], keys["targets"]
            (recovery,) = set(keys["root"]) - {coordinator, approver}
            roles = Roles(PublicKey(coordinator), PublicKey(approver), PublicKey(recovery))
        except (KeyError, ValueError, InputError) as error:
            raise TrustError("root metadata with other roles than ours") from error
        if signed != _root_of(roles, signed.expires):
            raise TrustError("root metadata with other roles or thresholds than ours")
        return roles

    @staticmethod
    def check_first(root: bytes, targets: bytes, files: Mapping[str, bytes]) -> None:
        """Whether a repository under this root could publish these targets; TrustError if not."""
        parsed, metadata = _parse(root, Root), _parse(targets, Targets)
        _require(parsed.signed, parsed)
        _require(parsed.signed, metadata)
        _check_files(files, metadata.signed, 1)

    @classmethod
    def found(cls, path: Path, signed: bytes, expiry: Expiry = Expiry()) -> Repository:
        """Make an empty repository under root metadata that two of its parties signed.

        Raises:
            OperationError: there is one already.
            TrustError: a signature is missing.
        """
        if (path / METADATA).exists():
            raise OperationError(
                f"there is already a repository at {path}",
                hint="publish to it, or name another directory",
                code="repository-exists",
            )
        root = _parse(signed, Root)
        _require(root.signed, root)
        with durable.disk_errors(path):
            for folder in (path, path / TARGETS, path / METADATA):
                folder.mkdir(parents=True, exist_ok=True)
        durable.replace(path / METADATA / "1.root.json", root.to_bytes())
        return cls(path, expiry)

    @property
    def root(self) -> bytes:
        """The newest root metadata: what a device is given at enrolment, by another way."""
        return self._root_path().read_bytes()

    @property
    def version(self) -> int:
        """The version of the published targets; 0 before the first release."""
        current = self._current()
        return current[2].signed.version if current else 0

    def publish(
        self,
        files: Mapping[str, bytes],
        targets_signers: Sequence[SigningKey],
        online_signer: SigningKey,
        now: datetime,
    ) -> int:
        """Replace what is published by ``files`` and return the new version.

        For two parties in two processes: :meth:`draft`, :meth:`sign` by each, :meth:`commit`.
        """
        draft = self.draft(files, now)
        for signer in targets_signers:
            draft = self.sign(draft, signer)
        return self.commit(files, draft, online_signer, now)

    def draft(self, files: Mapping[str, bytes], now: datetime) -> bytes:
        """Unsigned targets metadata for ``files``, as the next version. Writes nothing."""
        return self.draft_targets(files, self.version + 1, now, self.expiry)

    @staticmethod
    def draft_targets(
        files: Mapping[str, bytes], version: int, now: datetime, expiry: Expiry = Expiry()
    ) -> bytes:
        """The same as a given version, for a party that has no repository. Writes nothing."""
        for name in files:
            if not NAME.fullmatch(name):
                raise InputError(f"a target is a plain file name, not {name!r}")
        targets = Targets(
            version=version,
            expires=now + expiry.targets,
            targets={name: TargetFile.from_data(name, data) for name, data in files.items()},
        )
        return Metadata(targets).to_bytes()

    @staticmethod
    def sign(draft: bytes, signer: SigningKey) -> bytes:
        """The same targets metadata with one signature more. Know what is in it before you sign."""
        metadata = _parse(draft, Targets)
        _sign(metadata, [signer])
        return metadata.to_bytes()

    def commit(
        self,
        files: Mapping[str, bytes],
        signed: bytes,
        online_signer: SigningKey,
        now: datetime,
    ) -> int:
        """Publish ``files`` under targets metadata that both parties signed.

        Raises:
            TrustError: a signature is missing or another party's, or the files are not the signed
                ones. Nothing was written.
        """
        targets = _parse(signed, Targets)
        _require(self._root, targets)
        _check_files(files, targets.signed, self.version + 1)
        snapshot, timestamp = self._online(targets, online_signer, now)
        for name, data in files.items():
            (file,) = targets.signed.targets[name].get_prefixed_paths()
            self._write(TARGETS, file, data)
        version = targets.signed.version
        self._write(METADATA, f"{version}.targets.json", targets.to_bytes())
        self._write_online(snapshot, timestamp)
        return version

    def renew(self, online_signer: SigningKey, now: datetime) -> None:
        """Sign snapshot and timestamp anew, so that devices go on believing the same release."""
        current = self._current()
        if current is None:
            raise OperationError("nothing is published yet", hint="publish a release first")
        self._write_online(*self._online(current[2], online_signer, now))

    # -- pure: what is signed ------------------------------------------------------------------

    def _online(
        self, targets: Metadata[Targets], signer: SigningKey, now: datetime
    ) -> tuple[Metadata[Snapshot], Metadata[Timestamp]]:
        current = self._current()
        versions = (current[0].signed.version, current[1].signed.version) if current else (0, 0)
        snapshot = Metadata(
            Snapshot(
                version=versions[1] + 1,
                expires=now + self.expiry.snapshot,
                meta={"targets.json": _meta(targets)},
            )
        )
        _sign(snapshot, [signer])
        timestamp = Metadata(
            Timestamp(
                version=versions[0] + 1,
                expires=now + self.expiry.timestamp,
                snapshot_meta=_meta(snapshot),
            )
        )
        _sign(timestamp, [signer])
        _require(self._root, snapshot)
        _require(self._root, timestamp)
        return snapshot, timestamp

    # -- thin: the directory -------------------------------------------------------------------

    def _write(self, folder: str, name: str, data: bytes) -> None:
        durable.replace(self.path / folder / name, data)

    def _write_online(self, snapshot: Metadata[Snapshot], timestamp: Metadata[Timestamp]) -> None:
        self._write(METADATA, f"{snapshot.signed.version}.snapshot.json", snapshot.to_bytes())
        self._write(METADATA, "timestamp.json", timestamp.to_bytes())  # the switch: always last

    def _root_path(self) -> Path:
        found = {
            int(file.name.partition(".")[0]): file
            for file in (self.path / METADATA).glob("*.root.json")
            if file.name.partition(".")[0].isdecimal()
        }
        if not found:
            raise OperationError(
                f"there is no repository at {self.path}", hint="create one", code="no-repository"
            )
        return found[max(found)]

    def _read_root(self) -> Root:
        root = _parse(self._root_path().read_bytes(), Root)
        _require(root.signed, root)
        return root.signed

    def _read(self, name: str, kind: type[_Role], expected: MetaFile | None) -> Metadata[_Role]:
        try:
            data = (self.path / METADATA / name).read_bytes()
            if expected is not None:
                expected.verify_length_and_hashes(data)
        except (OSError, RepositoryError) as error:
            raise TrustError(f"{name} is missing or was changed: {error}", hint=_RESTORE) from error
        metadata = _parse(data, kind)
        _require(self._root, metadata)
        return metadata

    def _current(
        self,
    ) -> tuple[Metadata[Timestamp], Metadata[Snapshot], Metadata[Targets]] | None:
        """What is published, verified against the root; None before the first release."""
        if not (self.path / METADATA / "timestamp.json").exists():
            return None
        timestamp = self._read("timestamp.json", Timestamp, None)
        meta = timestamp.signed.snapshot_meta
        snapshot = self._read(f"{meta.version}.snapshot.json", Snapshot, meta)
        meta = snapshot.signed.meta["targets.json"]
        targets = self._read(f"{meta.version}.targets.json", Targets, meta)
        return timestamp, snapshot, targets


def _check_files(files: Mapping[str, bytes], targets: Targets, expected: int) -> None:
    if targets.version != expected or set(targets.targets) != set(files):
        raise TrustError(
            f"signed was version {targets.version} of {sorted(targets.targets)}, "
            f"published would be version {expected} of {sorted(files)}",
            hint="make and sign the draft again",
        )
    for name, data in files.items():
        try:
            targets.targets[name].verify_length_and_hashes(data)
        except RepositoryError as error:
            raise TrustError(f"{name} is not the file that was signed: {error}") from error


_RESTORE = "restore the repository from a copy, and find out who changed it"


def _root_of(roles: Roles, expires: datetime) -> Root:
    root = Root(version=1, expires=expires, consistent_snapshot=True)
    coordinator, approver, recovery = map(
        _tuf_key, (roles.coordinator, roles.approver, roles.recovery)
    )
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
    return root


def _tuf_key(key: PublicKey) -> SSlibKey:
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key.raw))


def _sign(metadata: Metadata[_Role], signers: Sequence[SigningKey]) -> None:
    for signer in signers:
        metadata.sign(CryptoSigner(signer.ed25519), append=True)


def _require(root: Root, metadata: Metadata[_Role]) -> None:
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


def _parse(data: bytes, kind: type[_Role]) -> Metadata[_Role]:
    try:
        metadata: Metadata[_Role] = Metadata.from_bytes(data)
    except RepositoryError as error:
        raise TrustError(f"not TUF metadata: {error}", hint=_RESTORE) from error
    if not isinstance(metadata.signed, kind):
        raise TrustError(f"{metadata.signed.type} metadata where {kind.type} was expected")
    return metadata


def _meta(metadata: Metadata[_Role]) -> MetaFile:
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])
