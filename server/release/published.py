"""What is published here, and does all of it verify? A TUF repository's directory, only read.

The rule: nothing is believed that the newest root does not vouch for, and the newest root has to be
what its own keys sign; :meth:`Published.roots` asks besides that each root followed from the one
before. This needs no key, and works on any copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from common import durable
from common.errors import OperationError, TrustError
from server.release.roots import DEFAULT, RESTORE, Expiry, Role, parse, require, verified_chain

METADATA = "metadata"
TARGETS = "targets"

Current = tuple[Metadata[Timestamp], Metadata[Snapshot], Metadata[Targets]]


@dataclass(frozen=True)
class Signed:
    """One piece of metadata as it stands: ``root``, ``timestamp``, ``snapshot`` or ``targets``."""

    role: str
    version: int
    expires: datetime


class Published:
    """A repository as devices see it. Every call reads it afresh.

    Args:
        path: the directory.
        expiry: of what is signed here.

    Raises:
        OperationError: there is no repository.
        TrustError: its newest root does not verify.
    """

    def __init__(self, path: Path, expiry: Expiry = DEFAULT) -> None:
        self.path = path
        self.expiry = expiry
        self._root = self._read_root()

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether something lies there that should be a repository. What a killed
        :func:`~common.durable.replace` left before the first root is nothing."""
        with durable.disk_errors(path):
            return (path / METADATA).exists() and any(
                not file.name.startswith(".") for file in (path / METADATA).iterdir()
            )

    @property
    def root(self) -> bytes:
        """The newest root metadata: what a device is given at enrolment, by another way."""
        roots = self._roots()
        return roots[max(roots)].read_bytes()

    @property
    def version(self) -> int:
        """The version of the published targets; 0 before the first release."""
        current = self._current()
        return current[2].signed.version if current else 0

    @property
    def targets(self) -> bytes | None:
        """The published targets metadata; None before the first release."""
        current = self._current()
        return current[2].to_bytes() if current else None

    def roots(self) -> list[bytes]:
        """Every root from the first, each of which was followed by the next.

        Raises:
            TrustError: one is missing, or does not follow.
        """
        roots = [file.read_bytes() for _, file in sorted(self._roots().items())]
        verified_chain(roots)
        return roots

    @property
    def newest_root(self) -> Signed:
        """The newest root as it stands, whatever the rest is like."""
        return Signed(self._root.type, self._root.version, self._root.expires)

    def current(self) -> Current | None:
        """Timestamp, snapshot and targets that are in force; None before the first release."""
        return self._current()

    def signed(self) -> list[Signed]:
        """What devices read, as far as it goes: root, timestamp, snapshot, targets."""
        current = (self._root, *(one.signed for one in self._current() or ()))
        return [Signed(one.type, one.version, one.expires) for one in current]

    def files(self) -> dict[str, int]:
        """The published files with their lengths in bytes, each of which was read and verified.

        Raises:
            TrustError: one is missing, or is not the one that was signed.
        """
        whole, broken = self.verified()
        for name, why in broken.items():
            raise TrustError(f"{name} is missing or was changed: {why}", hint=RESTORE)
        return whole

    def verified(self) -> tuple[dict[str, int], dict[str, str]]:
        """The published files with their lengths in bytes, and those that are missing or are not
        the ones that were signed, with why."""
        current = self._current()
        whole, broken = {}, {}
        for name, target in sorted(current[2].signed.targets.items()) if current else ():
            try:
                (file,) = target.get_prefixed_paths()
                data = (self.path / TARGETS / file).read_bytes()
                target.verify_length_and_hashes(data)
            except (OSError, ValueError, RepositoryError) as error:
                broken[name] = str(error)
            else:
                whole[name] = len(data)
        return whole, broken

    def begun(self) -> list[str]:
        """Metadata of a version that is not in force, and what killed writes left: file names."""
        current = self._current()
        newest = (current[1].signed.version, current[2].signed.version) if current else (0, 0)
        found = [
            file.name
            for folder in (METADATA, TARGETS)
            for file in durable.leftovers(self.path / folder)
        ]
        for kind, version in zip((Snapshot.type, Targets.type), newest, strict=True):
            found += [file.name for number, file in self.versions(kind) if number > version]
        return sorted(found)

    def versions(self, kind: str) -> list[tuple[int, Path]]:
        """Each ``snapshot``, ``targets`` or ``root`` that lies here, the oldest first."""
        return sorted(
            (int(file.name.partition(".")[0]), file)
            for file in (self.path / METADATA).glob(f"*.{kind}.json")
            if file.name.partition(".")[0].isdecimal()
        )

    def is_due(self, now: datetime) -> bool:
        """Whether less than half of the timestamp's life is left, of something published."""
        current = self._current()
        return current is not None and current[0].signed.expires - now < self.expiry.timestamp / 2

    # -- thin: the directory -----------------------------------------------------------------------

    def _roots(self) -> dict[int, Path]:
        found = dict(self.versions(Root.type))
        if not found:
            raise OperationError(
                f"there is no repository at {self.path}", hint="create one", code="no-repository"
            )
        return found

    def _read_root(self) -> Root:
        root = parse(self.root, Root)
        require(root.signed, root)
        return root.signed

    def _read(
        self, name: str, kind: type[Role], expected: MetaFile | None, judges: Sequence[Root]
    ) -> Metadata[Role]:
        try:
            data = (self.path / METADATA / name).read_bytes()
            if expected is not None:
                expected.verify_length_and_hashes(data)
        except (OSError, RepositoryError) as error:
            raise TrustError(f"{name} is missing or was changed: {error}", hint=RESTORE) from error
        metadata = parse(data, kind)
        for judge in judges:
            try:
                require(judge, metadata)
            except TrustError as error:
                refusal = error
            else:
                return metadata
        raise refusal

    def _current(self, *judges: Root) -> Current | None:
        """What is published, verified against one of these roots, if not the newest; None before
        the first release."""
        if not (self.path / METADATA / "timestamp.json").exists():
            return None
        judges = judges or (self._root,)
        timestamp = self._read("timestamp.json", Timestamp, None, judges)
        meta = timestamp.signed.snapshot_meta
        snapshot = self._read(f"{meta.version}.snapshot.json", Snapshot, meta, judges)
        meta = snapshot.signed.meta["targets.json"]
        targets = self._read(f"{meta.version}.targets.json", Targets, meta, judges)
        return timestamp, snapshot, targets
