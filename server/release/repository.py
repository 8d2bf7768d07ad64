"""Publish releases as a TUF repository: a directory that any file server can hand out.

The rule: nothing is written before the signatures that devices will ask for are there and valid,
and ``timestamp.json`` is written last, so that a publish that is killed leaves the former release
whole. A directory that was changed by somebody else is refused, never signed over. One process at a
time changes it; the others wait. Who has to sign is in :mod:`server.release.roots`.

Snapshots are consistent, and timestamp and snapshot carry lengths and digests, so every byte that a
device reads is covered.

    metadata/  N.root.json  N.targets.json  N.snapshot.json  timestamp.json
    targets/   SHA256.NAME
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

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
from common.keys import SigningKey
from server.release.published import METADATA, TARGETS, Current, Published
from server.release.roots import (
    DEFAULT,
    Expiry,
    Role,
    Roles,
    check_expiry,
    draft_root,
    parse,
    require,
    sign,
    sign_root,
)


def as_next(published: bytes, like: Metadata[Targets]) -> Targets:
    """What is published, as its next version that ends as ``like`` does: nothing else differs."""
    targets = parse(published, Targets).signed
    targets.version, targets.expires = targets.version + 1, like.signed.expires
    return targets


class Repository(Published):
    """A TUF repository in a directory. Every call reads it afresh.

    Args:
        path: made by :meth:`create`.
        expiry: of what is signed from now on.

    Raises:
        OperationError: there is no repository.
        TrustError: what is there does not verify.
    """

    @classmethod
    def create(
        cls,
        path: Path,
        root_signers: Sequence[SigningKey],
        roles: Roles,
        now: datetime,
        expiry: Expiry = DEFAULT,
    ) -> Repository:
        """Make an empty repository, whose root devices are given at enrolment.

        Args:
            root_signers: at least two of the three keys of ``roles``.
            now: aware date and time.
        """
        root = draft_root(roles, now, expiry)
        for signer in root_signers:
            root = sign_root(root, signer)
        return cls.found(path, root, expiry)

    @staticmethod
    def check_first(root: bytes, targets: bytes, files: Mapping[str, bytes], now: datetime) -> None:
        """Whether a repository under this root could publish these targets; TrustError if not."""
        parsed, metadata = parse(root, Root), parse(targets, Targets)
        require(parsed.signed, parsed)
        require(parsed.signed, metadata)
        _check_files(files, metadata.signed, 1)
        for signed in (parsed.signed, metadata.signed):
            check_expiry(signed, now)

    @classmethod
    def found(cls, path: Path, signed: bytes, expiry: Expiry = DEFAULT) -> Repository:
        """Make an empty repository under root metadata that two of its parties signed.

        Raises:
            OperationError: there is one already.
            TrustError: a signature is missing.
        """
        if cls.is_at(path):
            raise OperationError(
                f"there is already a repository at {path}",
                hint="publish to it, or name another directory",
                code="repository-exists",
            )
        root = parse(signed, Root)
        require(root.signed, root)
        with durable.disk_errors(path):
            for folder in (path, path / TARGETS, path / METADATA):
                folder.mkdir(parents=True, exist_ok=True)
        durable.replace(path / METADATA / "1.root.json", root.to_bytes())
        return cls(path, expiry)

    # -- a release -------------------------------------------------------------------------------

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
        files: Mapping[str, bytes], version: int, now: datetime, expiry: Expiry = DEFAULT
    ) -> bytes:
        """The same as a given version, for a party that has no repository. Writes nothing."""
        for name in files:
            if not NAME.fullmatch(name):
                raise InputError(f"a target is a plain file name, not {name!r}")
        targets = Targets(
            version=version,
            expires=now + expiry.targets,
            targets=_described(files),
        )
        return Metadata(targets).to_bytes()

    @staticmethod
    def sign(draft: bytes, signer: SigningKey) -> bytes:
        """The same targets metadata with one signature more. Know what is in it before you sign."""
        metadata = parse(draft, Targets)
        sign(metadata, [signer])
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
            TrustError: a signature is missing or another party's, the files are not the signed
                ones, or something else is signed with them. Nothing was written.
        """
        targets = parse(signed, Targets)
        with durable.in_turn(self.path):
            self._root = self._read_root()
            require(self._root, targets)
            current = self._current()
            version, there = targets.signed.version, current[2].signed.version if current else 0
            _check_files(files, targets.signed, max(version, there + 1))
            check_expiry(targets.signed, now)
            online = self._online(targets, current, [online_signer], now, (self._root,))
            for name, data in files.items():
                (file,) = targets.signed.targets[name].get_prefixed_paths()
                self._write(TARGETS, file, data)
            self._write(METADATA, f"{version}.targets.json", targets.to_bytes())
            self._write_online(*online)
        return version

    def holds(self, files: Mapping[str, bytes], targets: bytes) -> bool:
        """Whether these files are published already, under these very targets."""
        current, asked = self._current(), parse(targets, Targets).signed
        if current is None or current[2].signed != asked:
            return False
        _check_files(files, asked, asked.version)
        return True

    def renew(self, online_signer: SigningKey, now: datetime) -> None:
        """Sign snapshot and timestamp anew, so that devices go on believing the same release."""
        with durable.in_turn(self.path):
            self._root = self._read_root()
            current = self._current()
            if current is None:
                raise OperationError("nothing is published yet", hint="publish a release first")
            online = self._online(current[2], current, [online_signer], now, (self._root,))
            self._write_online(*online)

    # -- another root ----------------------------------------------------------------------------

    def follow(
        self,
        former: bytes,
        root: bytes,
        targets: bytes | None,
        online_signers: Sequence[SigningKey],
        now: datetime,
        *,
        last: bool,
    ) -> None:
        """Put the next root in force, and what is published under it.

        After a kill the same call finishes what it began.

        Args:
            former, root: the newest root, and the one that follows it.
            targets: what is published, signed anew as the next version; None: nothing was, or
                those who sign targets stay the same.
            online_signers: sign snapshot and timestamp.
            last: all is signed as both roots require, so that devices are served by either at each
                moment, and the root is written last. Else it is written before the timestamp: in
                between devices refuse what is there, and keep what they have.

        Raises:
            TrustError: ``root-moved``: another root or release came in between; or a signature is
                missing. Nothing was written.
        """
        old, new = parse(former, Root).signed, parse(root, Root)
        for judge in (old, new.signed):
            require(judge, new)
        online = None
        with durable.in_turn(self.path):
            newest, begun = self.root, parse(self.root, Root).signed == new.signed
            if not begun and newest != former:
                raise _moved("another root was put in force")
            bare = targets is None and not begun and _signers_differ(old, new.signed)
            if bare and self._current(old) is not None:
                raise _moved("something was published, or was missing where it was drafted,")
            if targets is not None:
                current = self._current(new.signed, old)
                again = self._again(parse(targets, Targets), current)
                judges = (old, new.signed) if last else (new.signed,)
                for judge in judges:
                    require(judge, again)
                online = self._online(again, current, online_signers, now, judges)
                self._write(METADATA, f"{again.signed.version}.targets.json", again.to_bytes())
            if online and last:
                self._write_online(*online)
            if not begun:
                self._write(METADATA, f"{new.signed.version}.root.json", root)
            if online and not last:
                self._write_online(*online)
            self._root = new.signed

    @staticmethod
    def _again(targets: Metadata[Targets], current: Current | None) -> Metadata[Targets]:
        """The published targets as the next version, or those that a killed call published."""
        published = current[2] if current else None
        if published is not None and published.signed == targets.signed:
            return published
        if published is None or targets.signed != as_next(published.to_bytes(), targets):
            raise _moved("something else was published")
        return targets

    # -- pure: what is signed ----------------------------------------------------------------------

    def _online(
        self,
        targets: Metadata[Targets],
        current: Current | None,
        signers: Sequence[SigningKey],
        now: datetime,
        judges: Sequence[Root],
    ) -> tuple[Metadata[Snapshot], Metadata[Timestamp]]:
        versions = (current[0].signed.version, current[1].signed.version) if current else (0, 0)
        snapshot = Metadata(
            Snapshot(
                version=versions[1] + 1,
                expires=now + self.expiry.snapshot,
                meta={"targets.json": _meta(targets)},
            )
        )
        sign(snapshot, signers)
        timestamp = Metadata(
            Timestamp(
                version=versions[0] + 1,
                expires=now + self.expiry.timestamp,
                snapshot_meta=_meta(snapshot),
            )
        )
        sign(timestamp, signers)
        for judge in judges:
            require(judge, snapshot)
            require(judge, timestamp)
        return snapshot, timestamp

    # -- thin: the directory -----------------------------------------------------------------------

    def _write(self, folder: str, name: str, data: bytes) -> None:
        durable.replace(self.path / folder / name, data)

    def _write_online(self, snapshot: Metadata[Snapshot], timestamp: Metadata[Timestamp]) -> None:
        self._write(METADATA, f"{snapshot.signed.version}.snapshot.json", snapshot.to_bytes())
        self._write(METADATA, "timestamp.json", timestamp.to_bytes())  # the switch: always last


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
    if targets != Targets(expected, expires=targets.expires, targets=_described(files)):
        raise TrustError(
            "more was signed than these files: other digests, a delegation, or fields of its own",
            hint="make and sign the draft again",
            code="crooked-targets",
        )


def _described(files: Mapping[str, bytes]) -> dict[str, TargetFile]:
    return {name: TargetFile.from_data(name, data, ["sha256"]) for name, data in files.items()}


def _signers_differ(old: Root, new: Root) -> bool:
    return bool(old.roles[Targets.type] != new.roles[Targets.type])


def _moved(what: str) -> TrustError:
    return TrustError(
        f"{what} since this change of keys was drafted",
        hint="draft the change again, and have that signed",
        code="root-moved",
    )


def _meta(metadata: Metadata[Role]) -> MetaFile:
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])
